"""Table 2: one line for each model and block, the modes side by side at every width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from repq_cli.modes.catalogue import mode_named
from repq_cli.modes.catalogue.merged import Merged
from repq_cli.report.cells import NONE, Cell, over_seeds, result, with_best
from repq_cli.report.lines import Line, modes, settle, widths
from repq_cli.report.published import PUBLISHED, Figure, figures
from repq_cli.report.runs import Bits, bits_label
from repq_cli.report.sections import Section
from repq_cli.report.table import Column, Table, TableLine, without_empty_columns

QAREPVGG = "QARepVGG"  # the block of that name, merged and then trained, as in its paper, beside RepVGG's modes
TEXTS = 4
FP_NETS = "FP: the nets that QAT starts from, without branches (Plain) and of the line's block (Re-param)."


def classification(section: Section) -> list[Table]:
    """Groups FP, 8, 4, 2 bit …; in FP, Plain's own net and that of the block. Published FP figures have own lines."""
    lines = section.lines
    if not section.is_of_classes or not lines:
        return []
    columns = [Column(name) for name in ("Model", "Rep", "Variant", "Source")]
    columns += [_column(section, "FP", name) for name in ("Plain", "Re-param")]
    groups = [(bits, [*modes(lines), QAREPVGG]) for bits in widths(lines)]
    for bits, names in groups:
        columns += [_column(section, bits_label(bits), mode_named(name).title) for name in names]
    models = {line.model for line in lines}
    published = [figure for figure in figures("classification", section.data) if figure.model in models]
    rows = [_line(section, line, lines, groups) for line in lines]
    rows += [_published(figure, len(columns)) for figure in published]
    kept, shown = without_empty_columns(columns, sorted(rows, key=lambda row: str(row[0])))
    notes = (FP_NETS,) * any(column.group == "FP" for column in kept) + (PUBLISHED,) * bool(published)
    return [Table("classification", "Classification", section.title, kept, shown, notes, "of a line at each width")]


def _column(section: Section, group: str, name: str) -> Column:
    return Column(name, group, section.form, section.unit, spread=True)


def _line(
    section: Section, line: Line, lines: Sequence[Line], groups: Sequence[tuple[Bits, Sequence[str]]]
) -> TableLine:
    cells = [over_seeds(settle(line.runs(plain)), "metric.fp") for plain in (True, False)]
    for bits, names in groups:
        found = [_cell(line, name, bits, lines) for name in names]
        cells += with_best(found, section.metric.higher_is_better, section.form)
    return (line.model, line.rep, line.variant, "", *cells)


def _cell(line: Line, name: str, bits: Bits, lines: Sequence[Line]) -> Cell:
    if name != QAREPVGG:
        return result(line.seeds(name, bits), "metric.deployed")
    if line.rep != "repvgg":
        return NONE
    others = (other for other in lines if other.rep == "qarepvgg" and other.model == line.model)
    alike = (other.seeds(Merged.name, bits) for other in others if _without_block(other) == _without_block(line))
    return result(next(alike, {}), "metric.deployed")


def _without_block(line: Line) -> Mapping[str, object]:
    return {key: value for key, value in line.options.items() if not key.startswith("rep.")}


def _published(figure: Figure, width: int) -> TableLine:
    cell = Cell(figure.value, status="done")
    fp = (cell, NONE) if figure.rep == "none" else (NONE, cell)
    blanks = [NONE] * (width - TEXTS - 2)
    return (figure.model, figure.rep, figure.method_text, figure.source, *fp, *blanks)
