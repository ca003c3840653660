"""Table 4: the time of a training step, relative to Plain's in FP and to Plain's in QAT at the same width."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from repq_cli.report.cells import NONE, Cell, median_cell, ratio
from repq_cli.report.lines import Line, entries_of, rep_order
from repq_cli.report.runs import Run
from repq_cli.report.sections import Section
from repq_cli.report.table import Column, Table, TableLine, without_empty_columns
from repq_cli.text import milliseconds, relative

MEDIANS = "Medians over runs of their median step; an FP stage that runs share counts once."
FP_STEP, QAT_STEP = "time.fp_step_ms", "time.qat_step_ms"


def training_time(section: Section) -> list[Table]:
    """FP nets, then every mode at every width; only what was trained has a time."""
    rows = [*_fp_lines(section.lines), *_qat_lines(section.lines)]
    lines = sorted(dict.fromkeys(rows), key=lambda row: (row[0], rep_order(str(row[1]))))
    if not lines:
        return []
    columns = [Column(name) for name in ("Model", "Rep", "Stage", "Bits", "Mode", "Variant")]
    columns.append(Column("Step, ms", form=milliseconds, unit="ms"))
    columns += [Column(f"/ Plain {stage}", form=relative, unit="times") for stage in ("FP", "QAT")]
    kept, shown = without_empty_columns(columns, lines)
    notes = (MEDIANS, *_machines(section.runs))
    return [Table("time", "Time of a training step, and relative to Plain", section.title, kept, shown, notes)]


def _fp_lines(lines: Sequence[Line]) -> Iterator[TableLine]:
    for line in lines:
        plain_step = _step(line.runs(True), FP_STEP)
        for name, plain in (("Plain", True), ("Re-param", False)):
            step = _step(line.runs(plain), FP_STEP)
            if step.value is not None:
                yield (line.model, line.rep, "FP", "", name, line.variant, step, ratio(step, plain_step), NONE)


def _qat_lines(lines: Sequence[Line]) -> Iterator[TableLine]:
    for entry in entries_of(lines, share_plain=False):
        step, plain_step = _step(entry.seeds.values(), QAT_STEP), _step(entry.plain.values(), QAT_STEP)
        if step.value is not None:
            model, rep, *texts = entry.texts
            relative_to = (_step(entry.line.runs(True), FP_STEP), plain_step)
            yield (model, rep, "QAT", *texts, step, *(ratio(step, other) for other in relative_to))


def _step(runs: Iterable[Run], key: str) -> Cell:
    """The median; rows that took over a stage from another run repeat its time to the last digit."""
    return median_cell({run.numbers[key] for run in runs if run.status == "done" and key in run.numbers})


def _machines(runs: Iterable[Run]) -> Iterator[str]:
    timed = (run for run in runs if run.status == "done" and {FP_STEP, QAT_STEP} & run.numbers.keys())
    machines = sorted({run.machine or "an unknown one" for run in timed})
    if len(machines) > 1:
        yield f"Measured on different machines, so that times do not compare: {'; '.join(machines)}."
