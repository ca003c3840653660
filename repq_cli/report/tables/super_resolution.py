"""Table 3: PSNR and SSIM of every set, a table for each scale."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from repq_cli.report.cells import Cell, Seeds, over_seeds, result
from repq_cli.report.lines import Line, entries_of, settle
from repq_cli.report.runs import Measured, Run
from repq_cli.report.sections import Section
from repq_cli.report.table import Column, Table, TableLine, with_best_in_column, without_empty_columns
from repq_cli.report.tables.overview import BEST
from repq_cli.runs.quality import UNITS, number

TITLES = {"psnr_y": "PSNR", "ssim_y": "SSIM"}  # on luma, as the literature has them
TEXTS = ("Model", "Rep", "Bits", "Mode", "Variant")

Target = tuple[str, str]  # a set and a metric


def super_resolution(section: Section) -> list[Table]:
    """Bicubic enlargement, the FP nets, then every mode at every width."""
    measured = {key for run in section.runs for key in run.values if key.name in TITLES}
    return [_table(section, scale, measured) for scale in sorted({key.scale for key in measured if key.scale})]


def _table(section: Section, scale: int, measured: set[Measured]) -> Table:
    targets = sorted({(key.set, key.name) for key in measured if key.scale == scale})
    columns = [Column(name) for name in TEXTS]
    for name, metric in targets:
        form, unit = partial(number, metric=metric), UNITS[metric]
        columns.append(Column(TITLES[metric], name, form, unit, spread=True))
    rows = list(_rows(section, scale, targets))
    lines = [line for line, _ in rows]
    for index, (_, metric) in enumerate(targets, len(TEXTS)):
        lines = with_best_in_column(lines, index, [group for _, group in rows], True, partial(number, metric=metric))
    kept, shown = without_empty_columns(columns, lines)
    return Table(
        "super_resolution",
        f"Super-resolution ×{scale}",
        f"{section.data}, PSNR (dB) and SSIM of luma",
        kept,
        shown,
        best=BEST,
    )


def _rows(section: Section, scale: int, targets: Sequence[Target]) -> Iterator[tuple[TableLine, object]]:
    """Lines of the table, each with the group among which the best is marked."""
    lines = [line for line in section.lines if _is_of_scale(line, scale)]
    bicubic = next((cells for run in section.runs if (cells := _bicubic(run, scale, targets))), None)
    if bicubic is not None:
        yield ("bicubic", "", "", "", "", *bicubic), "bicubic"
    for line in lines:
        for plain, name in ((True, "Plain"), (False, "Re-param")):
            if line.runs(plain):
                cells = _cells(settle(line.runs(plain)), scale, "fp", targets)
                yield (line.model, line.rep, "FP", name, line.variant, *cells), (line.name, name)
    for entry in entries_of(lines, share_plain=False):
        yield (*entry.texts, *_cells(entry.seeds, scale, "deployed", targets)), (entry.line.name, entry.bits)


def _is_of_scale(line: Line, scale: int) -> bool:
    runs = [run for setting in line.settings for run in setting.runs]
    scales = {key.scale for run in runs for key in run.values}
    return scale in scales if scales else line.options.get("model.scale", scale) == scale


def _bicubic(run: Run, scale: int, targets: Sequence[Target]) -> list[Cell]:
    """Enlargement without a network, which is the same in every run; empty where a run has not measured it."""
    values = [run.values.get(Measured(name, scale, metric, "bicubic")) for name, metric in targets]
    return [Cell(value, status="done") for value in values if value is not None] if None not in values else []


def _cells(seeds: Seeds, scale: int, engine: str, targets: Sequence[Target]) -> list[Cell]:
    cell = over_seeds if engine == "fp" else result
    return [cell(seeds, Measured(name, scale, metric, engine)) for name, metric in targets]
