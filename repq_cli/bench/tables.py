"""The tables of training steps, made of what bench.json holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from repq_cli.modes.catalogue import MODES
from repq_cli.modes.catalogue.merged import Merged
from repq_cli.modes.catalogue.plain import Plain
from repq_cli.modes.catalogue.repq import RepQ, RepQBN, RepQBNEst
from repq_cli.report.cells import NONE, Cell
from repq_cli.report.document import Chapter, Document
from repq_cli.report.table import Column, Table, TableLine, without_empty_columns
from repq_cli.text import milliseconds, relative

PAPER = tuple(mode.name for mode in (Plain, Merged, RepQ, RepQBN, RepQBNEst))  # modes in the order of arXiv 2311.05317
CLAIM = "arXiv 2311.05317 reports 25 % saved (ResNet-18, two V100)."
CLOCKS = {"wall": "wall clock", "cpu": "the process' own time"}

Row = Mapping[str, Any]


def document(found: Row) -> Document:
    """A chapter for each model, then notes."""
    chapters = tuple(_chapter(model, found) for model in dict.fromkeys(row["model"] for row in found["rows"]))
    return Document(chapters, tuple(found["notes"]))


def _chapter(model: str, found: Row) -> Chapter:
    size, width = found["size"], found["width"]
    title = f"{model}{'' if width == 1 else f' ×{width:g}'}, images of {size}x{size}, batch {found['batch']}; "
    title += f"{found['machine']}; {found['rounds']} interleaved rounds, {CLOCKS[found['clock']]}"
    rows = [row for row in found["rows"] if row["model"] == model]
    lines = [goal for goal in found["goals"] if goal["model"] == model]
    columns = list(dict.fromkeys(row["column"] for row in rows))
    tables = (_steps(rows), _paper(rows), _goals(lines, columns))
    return Chapter(title, tuple(table for table in tables if table.lines))


def _steps(rows: Sequence[Row]) -> Table:
    """Every kind of step that was timed."""
    columns = [Column(name) for name in ("step", "quant", "how")]
    columns += [Column(name, form=milliseconds, unit="ms") for name in ("ms", "shortest")]
    columns.append(Column("images/s", form="{:,.0f}".format))
    columns += [Column(name, form=relative, unit="times") for name in ("/ FP plain", "/ Plain QAT")]
    columns += [Column(name, form=_megabytes, unit="bytes") for name in ("MB kept", "MB peak")]
    lines: list[TableLine] = [
        (
            row["label"],
            row["quant"],
            row["column"],
            *(_cell(row[key]) for key in ("median_ms", "shortest_ms", "images_per_second")),
            *(_median(row.get(key)) for key in ("times_plain_fp", "times_plain_qat")),
            *(_cell(row.get(key)) for key in ("saved_bytes", "peak_bytes")),
        )
        for row in rows
    ]
    kept, shown = without_empty_columns(columns, lines)
    notes = (
        "ms: the median step; ratios: medians of the ratios within a round, to the same column.",
        "MB kept: what autograd saves from the forward to the backward pass, parameters not counted.",
    )
    return Table("steps", "Training steps", "", kept, shown, notes)


def _paper(rows: Sequence[Row]) -> Table:
    """In the shape of arXiv 2311.05317: a line for each block, modes side by side, relative to Plain."""
    modes = [mode for mode in dict.fromkeys([*PAPER, *MODES]) if any(row["mode"] == mode for row in rows)]
    columns = [Column("rep"), Column("quant"), Column("how")]
    columns += [Column(MODES[mode].title, form=relative, unit="times") for mode in modes]
    columns.append(Column("BNEst saves over BN, %", form="{:.0f}".format, unit="%"))
    lines: list[TableLine] = []
    ours = [row for row in rows if row["by"] == "repq" and row["stage"] == "qat"]
    for rep, quant, column in dict.fromkeys((row["rep"], row["quant"], row["column"]) for row in ours):
        if rep != "none":
            own = {row["mode"]: row for row in ours if (row["quant"], row["column"]) == (quant, column)
                   and row["rep"] in (rep, "none")}  # fmt: skip
            cells = [_median(own[mode]["times_plain_qat"]) if mode in own else Cell() for mode in modes]
            lines.append((rep, quant, column, *cells, _saving(own)))
    kept, shown = without_empty_columns(columns, lines)
    notes = (CLAIM,) if any(line[-1] is not NONE for line in lines) else ()
    return Table("paper", "Time of a training step relative to Plain QAT", "", kept, shown, notes)


def _saving(own: Mapping[str, Row]) -> Cell:
    """What RepQ-BNEst saves of RepQ-BN's time, in percent of the medians."""
    if not {RepQBN.name, RepQBNEst.name} <= own.keys():
        return NONE
    return _cell(100 * (1 - own[RepQBNEst.name]["median_ms"] / own[RepQBN.name]["median_ms"]))


def _goals(goals: Sequence[Row], columns: Sequence[str]) -> Table:
    """Ratios and the most that they are meant to be."""
    heads = [Column("ratio"), Column("at most")]
    heads += [Column(column, form=relative, unit="times") for column in columns]
    heads += [Column(column, "shortest", relative, "times") for column in columns]
    lines: list[TableLine] = []
    for goal in goals:
        limits = ", ".join(f"{column} {most:.2f}" for column, most in goal["at_most"].items())
        medians = [_median(goal["ratios"].get(column), NONE) for column in columns]
        minima = [_cell(goal["ratios"][column]["minima"]) if column in goal["ratios"] else NONE for column in columns]
        lines.append((goal["name"], limits, *medians, *minima))
    notes = ("Medians of the ratios within a round, then ratios of the shortest of all rounds.",)
    return Table("goals", "Ratios, and the most that they are meant to be", "", tuple(heads), tuple(lines), notes)


def _cell(value: float | None) -> Cell:
    return NONE if value is None else Cell(float(value), status="done")


def _median(value: Row | None, otherwise: Cell = NONE) -> Cell:
    return otherwise if value is None else _cell(value["median"])


def _megabytes(count: float) -> str:
    return f"{count / 1e6:.1f}"
