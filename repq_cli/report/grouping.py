"""From runs to lines: which runs are alike.

A run of Plain has no branches, so that the block's keys are no part of its options: it stands in the lines of every
block with otherwise the same options, as the baseline beside them. So do float runs beside every quantizer, and runs
that failed before their configuration was written.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from repq_cli.modes.catalogue import mode_named
from repq_cli.report.lines import FLOAT, NO_CONFIG, NOT_SET, Line, Options, Setting, method, rep_order
from repq_cli.report.runs import Run


def lines_of(runs: Sequence[Run]) -> list[Line]:
    """The lines that ``runs`` make, in the order of a table."""
    settings = _settings(runs)
    grouped: dict[tuple[str, str, str], list[tuple[Options, tuple[Setting, ...]]]] = defaultdict(list)
    for model in sorted({setting.model for setting in settings}):
        own = [setting for setting in settings if setting.model == model]
        for options in _largest([setting.options for setting in own]):
            members = tuple(setting for setting in own if setting.options.items() <= options.items())
            grouped[model, _rep(options, members), method(options)].append((options, members))
    lines = []
    for (model, rep, _), group in grouped.items():
        varying = _varying([options for options, _ in group])
        lines += [Line(model, rep, options, varying, members) for options, members in group]
    return sorted(lines, key=lambda line: (line.model, rep_order(line.rep), line.variant))


def _settings(runs: Sequence[Run]) -> list[Setting]:
    keys: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        keys[run.model] |= run.options.keys() if run.configured else set()
    groups: dict[Any, list[Run]] = defaultdict(list)
    for run in runs:
        options = _used_options(run, keys[run.model])
        groups[run.model, run.mode, run.bits, frozenset(options.items())].append(run)
    return [
        Setting(model, mode, bits, dict(options), tuple(group))
        for (model, mode, bits, options), group in groups.items()
    ]


def _used_options(run: Run, keys: set[str]) -> Options:
    """The options that have a bearing on the run's result; a key that others of its model have counts as not set."""
    options = dict(run.options)
    if run.configured:
        options = dict.fromkeys(keys, NOT_SET) | options
    elif run.status == "done":
        options |= NO_CONFIG
    return {key: value for key, value in options.items() if _matters(key, run)}


def _matters(key: str, run: Run) -> bool:
    return mode_named(run.mode).makes_use_of(key) and not (run.bits == FLOAT and key.startswith("quant."))


def _largest(candidates: list[Options]) -> list[Options]:
    """Those that are no part of another one, each once, in an order of their own."""
    unique = {frozenset(options.items()): options for options in candidates}
    largest = [options for key, options in unique.items() if not any(key < other for other in unique)]
    return sorted(largest, key=lambda options: sorted((key, str(value)) for key, value in options.items()))


def _rep(options: Options, settings: Sequence[Setting]) -> str:
    """The line's block; of a line of Plain alone, what its runs would have had."""
    if "rep.name" in options:
        return str(options["rep.name"])
    return ", ".join(sorted({run.rep for setting in settings for run in setting.runs}, key=rep_order))


def _varying(many: Sequence[Options]) -> frozenset[str]:
    """The keys that do not have the same value wherever they have one."""
    values: dict[str, set[Any]] = defaultdict(set)
    for options in many:
        for key, value in options.items():
            values[key].add(value)
    return frozenset(key for key, found in values.items() if len(found) > 1)
