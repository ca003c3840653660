"""What stands at the top of the page: how many runs of what, and the best that they reached."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import get_args

from repq_cli.modes.catalogue import mode_named, mode_order
from repq_cli.report.cells import result
from repq_cli.report.lines import Entry, entries_of, rep_order
from repq_cli.report.runs import Bits, Run, Status, bits_label, compared
from repq_cli.report.sections import UNKNOWN, Section
from repq_cli.report.table import Column, entry_text
from repq_cli.report.tables.overview import difference_to_fp

FATES = get_args(Status)


def default_title(runs: Sequence[Run]) -> str:
    """What the page is about, in a line.

    Names of models and data where they are few.
    """
    known = compared(runs) or runs
    models, data = sorted({run.model for run in known}), sorted({run.data for run in known if run.data})
    of = f" of {' and '.join(models)}" if len(models) <= 2 else f" of {len(models)} models"
    on = f" on {' and '.join(data)}" if 0 < len(data) <= 2 else f" on {len(data)} data sets" if data else ""
    return f"{_count(len(runs), 'run')}{of}{on}"


def facts(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Names of facts and what they are: the runs' fates, models, blocks, modes, widths, data and seeds."""
    fates = Counter(run.status for run in runs)
    runs = compared(runs) or runs
    seeds = sorted({run.seed for run in runs if run.seed is not None})
    said = [
        ("Runs", ", ".join(f"{fates[fate]} {fate}" for fate in FATES if fates[fate])),
        ("Models", _listed(sorted({run.model for run in runs}))),
        ("Blocks", _listed(sorted({run.rep for run in runs}, key=rep_order))),
        ("Modes", _listed(mode_named(mode).title for mode in sorted({run.mode for run in runs}, key=mode_order))),
        ("Widths", _listed(map(bits_label, sorted({run.bits for run in runs}, reverse=True)))),
        ("Data", _listed(sorted({run.data for run in runs if run.data is not None}))),
        ("Seeds", _listed(map(str, seeds))),
    ]
    return [(name, text) for name, text in said if text]


def best_results(section: Section) -> list[str]:
    """A sentence for every width, wide before narrow: which setting's deployed nets are the best, and how good.

    Nets that enlarge pictures by another factor are no rivals. Of those that print alike the first is named.
    """
    if section.metric == UNKNOWN:
        return []
    rivals: dict[tuple[object, Bits], list[Entry]] = defaultdict(list)
    for entry in entries_of(section.lines, share_plain=True):
        if result(entry.seeds, "metric.deployed").value is not None:
            rivals[entry.options.get("model.scale"), entry.bits].append(entry)
    ordered = sorted(rivals.items(), key=lambda item: (str(item[0][0]), [-width for width in item[0][1]]))
    return [_sentence(section, scale, bits, entries) for (scale, bits), entries in ordered]


def _sentence(section: Section, scale: object, bits: Bits, entries: Sequence[Entry]) -> str:
    cells = [(result(entry.seeds, "metric.deployed"), entry) for entry in entries]
    values = [cell.value for cell, _ in cells if cell.value is not None]
    best = section.form(max(values) if section.metric.higher_is_better else min(values))
    alike = [pair for pair in cells if pair[0].value is not None and section.form(pair[0].value) == best]
    (cell, entry), others = alike[0], len(alike) - 1
    where = bits_label(bits) if scale is None else f"×{scale}, {bits_label(bits)}"
    same = f"; {others} other{'s reach' if others > 1 else ' reaches'} the same" if others else ""
    reached = entry_text(cell, Column("", form=section.form, unit=section.unit, spread=True), counts=False)
    unit = f" {section.unit}" if section.unit else ""
    seeds = _count(cell.n, "seed")
    return f"{where}: {reached}{unit} by {_name(entry)}, {seeds}{_against_fp(section, entry)}{same}."


def _name(entry: Entry) -> str:
    model, rep, _, mode, variant = entry.texts_of_net
    block = "" if rep == "none" else f" with {rep}"
    return f"{model}{block}, {mode}" + (f" ({variant})" if variant else "")


def _against_fp(section: Section, entry: Entry) -> str:
    difference = difference_to_fp(entry).value
    if difference is None:
        return ""
    text = section.form(abs(difference))
    if float(text) == 0:
        return ", as good as its FP net"
    return f", {text} {'above' if difference > 0 else 'below'} its FP net"


def _count(number: int, word: str) -> str:
    return f"{number} {word}" + "s" * (number != 1)


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words)
