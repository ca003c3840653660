"""A table as the page shows it: texts, and beside them the numbers by which its columns are sorted."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from repq_cli.report.cells import Cell
from repq_cli.report.table import Table


class Entry(NamedTuple):
    """A cell. value: what sorts it, None for texts and where there is no number. mark: how it stands out, if at all.

    Marks are ``best``, ``code``, ``error``, and the fates of runs: ``done``, ``failed``, ``interrupted`` …
    """

    text: str
    value: float | None = None
    mark: str = ""


class Heading(NamedTuple):
    """A column's name, and whether numbers stand below it."""

    text: str
    numeric: bool = False


@dataclass(frozen=True)
class Grid:
    """Lines of entries under headings, whose first column says what a line is of.

    groups: names over neighbouring columns and how many each spans; empty if there are none.
    """

    caption: str
    headings: tuple[Heading, ...]
    lines: tuple[tuple[Entry, ...], ...]
    groups: tuple[tuple[str, int], ...] = ()
    notes: tuple[str, ...] = ()


def grid_of(table: Table) -> Grid:
    """A table of means and texts; a mean with its deviation sorts by the mean."""
    return Grid(
        "; ".join(part for part in (table.title, table.statistics) if part),
        tuple(Heading(column.name, column.form is not None) for column in table.columns),
        tuple(
            tuple(_entry(text, entry) for text, entry in zip(texts, line, strict=True))
            for texts, line in zip(table.texts, table.lines, strict=True)
        ),
        spans(column.group for column in table.columns),
        table.legend,
    )


def _entry(text: str, entry: str | Cell) -> Entry:
    if isinstance(entry, str):
        return Entry(text)
    mark = "best" if entry.best else entry.status if entry.status not in ("done", "missing", "none") else ""
    return Entry(text, entry.value, mark)


def spans(groups: Iterable[str]) -> tuple[tuple[str, int], ...]:
    """The group of every column, in a row of headings; nothing where no column has one.

    >>> spans(["", "FP", "FP"]), spans(["", ""])
    ((('', 1), ('FP', 2)), ())
    """
    found = tuple((group, len(list(own))) for group, own in itertools.groupby(groups))
    return found if any(group for group, _ in found) else ()
