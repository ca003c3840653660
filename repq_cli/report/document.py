"""What ``repq table`` prints: a chapter for each section of runs, then what is to be said of runs as such."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from repq_cli.report.notes import notes_on, notes_on_failures
from repq_cli.report.runs import Run, compared
from repq_cli.report.sections import Section, sections_of
from repq_cli.report.table import Table
from repq_cli.report.tables.bops import bops
from repq_cli.report.tables.classification import classification
from repq_cli.report.tables.overview import overview
from repq_cli.report.tables.paired import paired
from repq_cli.report.tables.published import published_tables
from repq_cli.report.tables.super_resolution import super_resolution
from repq_cli.report.tables.survey import compares_methods, survey
from repq_cli.report.tables.training_time import training_time


class Kind(NamedTuple):
    """How tables of a name are made of a section of runs, and what they show."""

    tables: Callable[[Section], list[Table]]
    summary: str


TABLES = {
    "overview": Kind(overview, "every mode at every width: FP, deployed, differences to FP and to Plain, size, BOPs"),
    "classification": Kind(classification, "one line for each model and block, modes side by side at every width"),
    "super_resolution": Kind(super_resolution, "PSNR and SSIM for each set, a table for each scale"),
    "paired": Kind(paired, "differences to FP, Plain and Merged over seeds that both have, with 95 % intervals"),
    "time": Kind(training_time, "a training step, relative to Plain's in FP and in QAT"),
    "survey": Kind(survey, "1 bit, ternary, 8 bit integers and float: metric, size, compression"),
    "bops": Kind(bops, "bit operations against the metric, and the Pareto front"),
}


@dataclass(frozen=True)
class Chapter:
    """Tables of one section, and what holds for all of them."""

    title: str
    tables: tuple[Table, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Document:
    """All that is printed, in its order."""

    chapters: tuple[Chapter, ...]
    notes: tuple[str, ...]

    @property
    def all_notes(self) -> list[str]:
        """For formats that have no place for them."""
        tables = [note for chapter in self.chapters for table in chapter.tables for note in table.notes]
        chapters = [note for chapter in self.chapters for note in chapter.notes]
        return list(dict.fromkeys([*tables, *chapters, *self.notes]))


def document(runs: Sequence[Run], notes: Sequence[str], names: Sequence[str], published: bool) -> Document:
    """The tables called ``names``, or if there are none, those for which there is something to show."""
    runs = sorted(runs, key=lambda run: run.folder)
    chapters = []
    for section in sections_of(compared(runs)):
        wanted = names or [name for name in TABLES if name != "survey" or compares_methods(section)]
        tables = [table for name in TABLES if name in wanted for table in TABLES[name].tables(section)]
        if tables:
            chapters.append(Chapter(section.title, tuple(tables), tuple(notes_on(section))))
    shown = {table.name for chapter in chapters for table in chapter.tables}
    absent = [f"There is nothing for the table {name}." for name in names if name not in shown]
    figures = tuple(published_tables(names)) if published else ()
    if figures:
        chapters.append(Chapter("Published figures", figures))
    return Document(tuple(chapters), (*absent, *notes_on_failures(runs), *notes))
