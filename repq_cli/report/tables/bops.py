"""Table 6: bit operations against the metric, and which nets no other one beats in both."""

from __future__ import annotations

from collections.abc import Sequence

from repq_cli.report.cells import over_seeds
from repq_cli.report.lines import entries_of
from repq_cli.report.sections import Section
from repq_cli.report.table import Column, Table, TableLine, without_empty_columns
from repq_cli.text import short

PARETO = "Pareto: no other net is better in BOPs or metric without being worse in the other."

Point = tuple[float, float]


def bops(section: Section) -> list[Table]:
    """Cheap nets first; failed and unmeasured ones are left out, having no place in that order."""
    found = []
    for entry in entries_of(section.lines, share_plain=True):
        cost, quality = over_seeds(entry.seeds, "cost.bops"), over_seeds(entry.seeds, "metric.deployed")
        if cost.value is not None and quality.value is not None:
            found.append((cost.value, quality.value, entry.texts_of_net, cost, quality))
    if not found:
        return []
    sign = 1 if section.metric.higher_is_better else -1
    found.sort(key=lambda item: (item[0], -sign * item[1], item[2]))
    front = pareto_front([(cost, sign * quality) for cost, quality, *_ in found])
    lines: list[TableLine] = [
        (*texts, cost, quality, "yes" if on_front else "")
        for (_, _, texts, cost, quality), on_front in zip(found, front, strict=True)
    ]
    columns = [
        *(Column(name) for name in ("Model", "Rep", "Bits", "Mode", "Variant")),
        Column("BOPs", form=short, unit="bit operations"),
        Column("Deployed", form=section.form, unit=section.unit, spread=True),
        Column("Pareto"),
    ]
    kept, shown = without_empty_columns(columns, lines)
    return [Table("bops", "Bit operations", section.title, kept, shown, (PARETO,))]


def pareto_front(points: Sequence[Point]) -> list[bool]:
    """Whether no other point costs at most as much and is at least as good, one of the two strictly.

    >>> pareto_front([(1.0, 90.0), (2.0, 89.0), (2.0, 92.0)])
    [True, False, True]
    """
    return [
        not any(cost <= own_cost and quality >= own_quality and (cost, quality) != (own_cost, own_quality)
                for cost, quality in points)
        for own_cost, own_quality in points
    ]  # fmt: skip
