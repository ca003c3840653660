"""All published figures as tables of their own: one for each data set and kind."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from repq_cli.report.cells import Cell
from repq_cli.report.published import Figure, published
from repq_cli.report.table import Column, Table, without_empty_columns
from repq_cli.runs.quality import UNITS, number


def published_tables(names: Sequence[str] = ()) -> list[Table]:
    """Those that belong to the tables called ``names``, or all, in the order of the file; nothing is added to it."""
    kinds = list(dict.fromkeys((figure.data, figure.table, figure.metric) for figure in published()))
    return [_table(*kind) for kind in kinds if not names or kind[1] in names]


def _table(data: str, kind: str, metric: str) -> Table:
    columns = [Column(name) for name in ("Model", "Rep", "Method", "Weights", "Activations")]
    columns.append(Column(metric, form=partial(number, metric=metric), unit=UNITS[metric]))
    found = [figure for figure in published() if (figure.data, figure.table, figure.metric) == (data, kind, metric)]
    kept, lines = without_empty_columns([*columns, Column("Source")], [_line(figure) for figure in found])
    what = "full precision" if kind == "classification" else "few bits against float"
    return Table("published", f"Published: {data}, {what}", f"{metric} ({UNITS[metric]})", kept, lines)


def _line(figure: Figure) -> tuple[str | Cell, ...]:
    widths = (width_text(figure.weight_bits), width_text(figure.act_bits))
    return (figure.model, figure.rep, figure.method, *widths, Cell(figure.value, status="done"), figure.source)


def width_text(bits: int | None) -> str:
    """One width in words; empty where a source does not say."""
    return "" if bits is None else "float" if bits == 32 else f"{bits} bit"
