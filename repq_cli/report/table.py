"""A table before it is printed: columns, lines of cells, notes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from repq_cli.report.cells import Cell, with_best


@dataclass(frozen=True)
class Column:
    """A column of texts (``form`` None) or of numbers.

    group: columns of the same group stand under one heading. unit: of the values, for CSV and JSON.
    spread: numbers come with their standard deviation and count of seeds.
    """

    name: str
    group: str = ""
    form: Callable[[float], str] | None = None
    unit: str = ""
    spread: bool = False


TableLine = tuple[str | Cell, ...]
MISSING = "–"


@dataclass(frozen=True)
class Table:
    """Lines of texts and cells under columns.

    name: as on the command line. subject: what is tabulated. best: what bold cells are the best of.
    """

    name: str
    title: str
    subject: str
    columns: tuple[Column, ...]
    lines: tuple[TableLine, ...]
    notes: tuple[str, ...] = ()
    best: str = ""

    @property
    def statistics(self) -> str:
        """What the numbers are of, in words."""
        words = {0: "", 1: "one seed", None: "mean ± sample standard deviation (number of seeds, if more than one)"}
        return words.get(self.seeds, f"mean ± sample standard deviation over {self.seeds} seeds")

    @property
    def caption(self) -> str:
        """The title, what it is about, and what the numbers are over seeds."""
        return "; ".join(part for part in (f"{self.title}: {self.subject}", self.statistics) if part)

    @property
    def legend(self) -> tuple[str, ...]:
        """What signs mean that occur in the table, then its notes."""
        cells = [cell for line in self.lines for cell in line if isinstance(cell, Cell)]
        signs = []
        if any(cell.status == "missing" for cell in cells):
            signs.append(f"{MISSING}: not run, or not measured.")
        if any(cell.best for cell in cells):
            signs.append(f"Bold: the best {self.best}.")
        return (*signs, *self.notes)

    @property
    def texts(self) -> list[list[str]]:
        """Every entry as text, without emphasis; numbers of seeds only where they differ."""
        counts = self.seeds is None
        return [
            [entry_text(entry, column, counts) for column, entry in zip(self.columns, line, strict=True)]
            for line in self.lines
        ]

    @property
    def seeds(self) -> int | None:
        """The number of seeds that all means have in common; None if they differ, 0 if there are none."""
        counts = {
            cell.n
            for line in self.lines
            for column, cell in zip(self.columns, line, strict=True)
            if column.spread and isinstance(cell, Cell) and cell.n
        }
        return counts.pop() if len(counts) == 1 else None if counts else 0


def entry_text(entry: str | Cell, column: Column, counts: bool) -> str:
    """``97.12 ± 0.20 (3)``, the reason why there is no number, or the text itself."""
    if isinstance(entry, str):
        return entry
    if entry.value is None or column.form is None:
        return {"missing": MISSING, "none": ""}.get(entry.status, entry.status)
    text = column.form(entry.value)
    if column.spread and entry.std is not None:
        text += f" ± {column.form(entry.std).lstrip('+')}" + (f" ({entry.n})" if counts else "")
    return text


def without_empty_columns(
    columns: Sequence[Column], lines: Sequence[TableLine]
) -> tuple[tuple[Column, ...], tuple[TableLine, ...]]:
    """Leave out columns in which nothing stands, neither text nor a value nor a failure."""
    kept = [index for index in range(len(columns)) if any(_says_something(line[index]) for line in lines)]
    return tuple(columns[index] for index in kept), tuple(tuple(line[index] for index in kept) for line in lines)


def _says_something(entry: str | Cell) -> bool:
    return entry.status not in ("missing", "none") if isinstance(entry, Cell) else entry != ""


def with_best_in_column(
    lines: Sequence[TableLine],
    index: int,
    groups: Sequence[object],
    higher_is_better: bool,
    form: Callable[[float], str],
) -> list[TableLine]:
    """``lines`` with the best cell of column ``index`` marked among the lines of the same group."""
    marked = list(lines)
    for group in dict.fromkeys(groups):
        members = [number for number, own in enumerate(groups) if own == group]
        cells = [cell for number in members if isinstance(cell := lines[number][index], Cell)]
        for number, cell in zip(members, with_best(cells, higher_is_better, form), strict=True):
            marked[number] = (*lines[number][:index], cell, *lines[number][index + 1 :])
    return marked
