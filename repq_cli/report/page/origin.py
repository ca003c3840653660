"""How runs were set up, and where they ran: what all have in common is said once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from repq_cli.modes.catalogue import mode_named, mode_order
from repq_cli.report.grouping import lines_of
from repq_cli.report.lines import NO_CONFIG, NOT_SET, Setting, rep_order, value_text
from repq_cli.report.page.grid import Entry, Grid, Heading
from repq_cli.report.runs import Run, bits_label
from repq_cli.text import moment

NAMES = {
    "cpu": "Processor",
    "gpus": "GPUs",
    "threads": "Threads",
    "platform": "System",
    "git": "Git commit of repq",
    "python": "Python",
}
OF_THE_BLOCK = {"rep.name", "rep._target_", "model._target_"}  # the names of model and block say it

Uses = dict[str, dict[str, list[Setting]]]  # the settings that have a value of a key


def configurations(runs: Sequence[Run]) -> list[Grid]:
    """The keys with the same value wherever they have an effect, by section; then those that differ."""
    uses: Uses = defaultdict(lambda: defaultdict(list))
    for setting in {id(setting): setting for line in lines_of(runs) for setting in line.settings}.values():
        for key, value in setting.options.items():
            if value != NOT_SET and key not in NO_CONFIG and key not in OF_THE_BLOCK:
                uses[key][value_text(value)].append(setting)
    grids = (_common(uses, len(runs)), _differing(uses))
    return [grid for grid in grids if grid.lines]


def _common(uses: Uses, runs: int) -> Grid:
    sections: dict[str, list[str]] = defaultdict(list)
    for key, values in sorted(uses.items()):
        if len(values) == 1:
            section, _, name = key.rpartition(".")
            sections[section].append(f"{name}={next(iter(values))}")
    lines = tuple((Entry(section or "–"), Entry("  ".join(words), mark="code")) for section, words in sections.items())
    caption = "The same in all runs that have it" if runs > 1 else "What the run was set up with"
    return Grid(caption, (Heading("Section"), Heading("Keys and values")), lines)


def _differing(uses: Uses) -> Grid:
    lines = [
        (Entry(key), Entry(value, mark="code"), *_users([run for setting in settings for run in setting.runs]))
        for key, values in sorted(uses.items())
        for value, settings in sorted(values.items())
        if len(values) > 1
    ]
    names = (Heading("Key"), Heading("Value"), Heading("Runs", True))
    of = ("Models", "Blocks", "Modes", "Widths")
    caption = "What differs between runs, beside model, block, mode, widths, data and seed"
    return Grid(caption, (*names, *map(Heading, of)), tuple(lines))


def _users(runs: Sequence[Run]) -> tuple[Entry, ...]:
    """How many runs, and their models, blocks, modes and widths."""
    found = (
        sorted({run.model for run in runs}),
        sorted({run.rep for run in runs}, key=rep_order),
        [mode_named(mode).title for mode in sorted({run.mode for run in runs}, key=mode_order)],
        [bits_label(bits) for bits in sorted({run.bits for run in runs}, reverse=True)],
    )
    return (Entry(str(len(runs)), len(runs)), *(Entry(", ".join(names)) for names in found))


def environments(runs: Sequence[Run]) -> Grid | None:
    """Machine, versions and sources, each with how many runs have it; and when they were finished."""
    uses: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for run in runs:
        for key, value in run.environment.items():
            uses[key][value] += 1
    lines = [
        (Entry(NAMES.get(key, key)), Entry(value), Entry(str(count), count))
        for key in [*NAMES, *sorted(uses.keys() - NAMES.keys())]
        for value, count in sorted(uses.get(key, {}).items())
    ]
    times = sorted(moment(run.finished) for run in runs if run.finished)
    if times:
        span = times[0] if times[0] == times[-1] else f"{times[0]} to {times[-1]}"
        lines.append((Entry("Finished"), Entry(span), Entry(str(len(times)), len(times))))
    if not lines:
        return None
    return Grid("Machine and versions", (Heading("What"), Heading("Value"), Heading("Runs", True)), tuple(lines))
