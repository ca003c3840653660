"""Which mode is better, seed by seed: mean differences of runs that share a seed, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

from repq_cli.modes.catalogue import mode_named
from repq_cli.modes.catalogue.merged import Merged
from repq_cli.modes.catalogue.plain import Plain
from repq_cli.report.cells import Cell, mean_cell, values_of
from repq_cli.report.lines import Entry, entries_of
from repq_cli.report.sections import Section
from repq_cli.report.table import Column, Table, TableLine, without_empty_columns
from repq_cli.runs.quality import signed

# 97.5 % quantiles of Student's t with 1 to 30 degrees of freedom; beyond, that of the normal distribution is near.
STUDENT_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
NORMAL = 1.960
BASELINES = (Plain.name, Merged.name)  # what other modes are held against, and Merged against Plain
INTERVAL = (
    "Difference: mean over the seeds that both have; 95 %: Student's interval of that mean, t s / sqrt(n), which takes "
    "differences for normally distributed and holds for new seeds, not for new images."
)


class Interval(NamedTuple):
    """Where the mean lies with 95 % confidence."""

    low: float
    high: float


def interval(differences: Sequence[float]) -> Interval:
    """``mean +- t s / sqrt(n)`` with the sample standard deviation ``s``, ``t`` of ``n - 1`` degrees of freedom.

    >>> low, high = interval([1.0, 2.0, 3.0])
    >>> round(low, 3), round(high, 3)
    (-0.484, 4.484)
    """
    cell = mean_cell(differences)
    assert cell.value is not None and cell.std is not None, "of two values or more"
    t = STUDENT_T[cell.n - 2] if cell.n - 2 < len(STUDENT_T) else NORMAL
    half = t * cell.std / math.sqrt(cell.n)
    return Interval(cell.value - half, cell.value + half)


def paired(section: Section) -> list[Table]:
    """Every mode against its FP net, and at the same width against Plain and against Merged; of two seeds or more."""
    lines = [line for entry in entries_of(section.lines, share_plain=False) for line in _lines(entry, section)]
    if not lines:
        return []
    columns, kept = without_empty_columns(_columns(section), lines)
    return [Table("paired", "Paired differences", section.title, columns, kept, (INTERVAL,))]


def _columns(section: Section) -> list[Column]:
    difference = partial(Column, form=partial(signed, metric=section.metric.name), unit=section.unit)
    return [
        *(Column(name) for name in ("Model", "Rep", "Bits", "Mode", "Variant", "Against")),
        Column("Seeds", form=lambda count: f"{count:.0f}"),
        difference("Difference"),
        difference("95 % from"),
        difference("95 % to"),
        Column("Better in", form=lambda count: f"{count:.0f}", unit="seeds"),
    ]


def _lines(entry: Entry, section: Section) -> Iterator[TableLine]:
    own = values_of(entry.seeds, "metric.deployed")
    others = {"its FP net": values_of(entry.seeds, "metric.fp")}
    for mode in BASELINES[: BASELINES.index(entry.mode)] if entry.mode in BASELINES else BASELINES:
        others[mode_named(mode).title] = values_of(entry.line.seeds(mode, entry.bits), "metric.deployed")
    for name, other in others.items():
        differences = [own[seed] - other[seed] for seed in own if seed in other]
        if len(differences) > 1:
            ends = interval(differences)
            sign = 1 if section.metric.higher_is_better else -1
            better = sum(sign * difference > 0 for difference in differences)
            numbers = (len(differences), mean_cell(differences).value, *ends, better)
            yield (*entry.texts, name, *(Cell(value, status="done") for value in numbers))
