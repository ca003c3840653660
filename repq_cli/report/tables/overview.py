"""Table 1: what every mode reaches at every width, against FP and against Plain, and what it costs."""

from __future__ import annotations

from functools import partial

from repq_cli.modes.catalogue.plain import Plain
from repq_cli.report.cells import NONE, Cell, over_seeds, paired_difference, ratio, result, values_of
from repq_cli.report.lines import Entry, entries_of
from repq_cli.report.sections import Section
from repq_cli.report.table import Column, Table, TableLine, with_best_in_column, without_empty_columns
from repq_cli.runs.quality import signed
from repq_cli.text import file_size, short, times

DEPLOYED = 6  # its column
DELTAS = "Δ: the deployed net's metric minus that of its FP net, and of Plain at the same width, seed by seed."
BEST = "mode of a block at a width"


def overview(section: Section) -> list[Table]:
    """One line for each model, block, width and mode."""
    entries = entries_of(section.lines, share_plain=False)
    if not entries:
        return []
    lines = [_line(entry) for entry in entries]
    groups = [(entry.line.name, entry.bits) for entry in entries]
    better = section.metric.higher_is_better
    lines = with_best_in_column(lines, DEPLOYED, groups, better, section.form)
    columns, kept = without_empty_columns(_columns(section), lines)
    notes = (DELTAS,) * any("Δ" in column.name for column in columns)
    return [Table("overview", "Overview of modes", section.title, columns, kept, notes, BEST)]


def _columns(section: Section) -> list[Column]:
    metric, unit = section.metric.name, section.unit
    difference = partial(signed, metric=metric)
    return [
        *(Column(name) for name in ("Model", "Rep", "Bits", "Mode", "Variant")),
        Column("FP", form=section.form, unit=unit, spread=True),
        Column("Deployed", form=section.form, unit=unit, spread=True),
        Column("Δ FP", form=difference, unit=unit, spread=True),
        Column("Δ Plain", form=difference, unit=unit, spread=True),
        Column("Size", form=file_size, unit="bytes"),
        Column("Compression", form=times, unit="times float32"),
        Column("BOPs", form=short, unit="bit operations"),
    ]


def _line(entry: Entry) -> TableLine:
    size = over_seeds(entry.seeds, "size.bytes_packed")
    return (
        *entry.texts,
        over_seeds(entry.seeds, "metric.fp"),
        result(entry.seeds, "metric.deployed"),
        difference_to_fp(entry),
        NONE if entry.mode == Plain.name else difference_to_plain(entry),
        size,
        ratio(over_seeds(entry.seeds, "size.bytes_fp32"), size),
        over_seeds(entry.seeds, "cost.bops"),
    )


def difference_to_fp(entry: Entry) -> Cell:
    """Deployed minus FP of the same runs."""
    return paired_difference(values_of(entry.seeds, "metric.deployed"), values_of(entry.seeds, "metric.fp"))


def difference_to_plain(entry: Entry) -> Cell:
    """Deployed minus Plain's deployed at the same width, seed by seed."""
    return paired_difference(values_of(entry.seeds, "metric.deployed"), values_of(entry.plain, "metric.deployed"))
