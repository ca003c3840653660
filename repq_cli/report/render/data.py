"""CSV and JSON: plain numbers at full precision, for other programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

from repq_cli.report.cells import Cell
from repq_cli.report.document import Document
from repq_cli.report.table import Table
from repq_cli.text import INVISIBLE, visible

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # with which formulas begin
VALUES = ("group", "column", "unit", "value", "std", "n", "status", "best")


def as_csv(document: Document) -> str:
    """One line for each number: its table, the texts of its line, its column, and value, std, n and status.

    Notes have no place in it.
    """
    tables = [table for chapter in document.chapters for table in chapter.tables]
    texts = list(dict.fromkeys(column.name for table in tables for column in table.columns if column.form is None))
    written = io.StringIO()
    writer = csv.DictWriter(
        written, ["table", "title", "subject", *map(cell, texts), *VALUES], restval="", lineterminator="\n"
    )
    writer.writeheader()
    for table in tables:
        writer.writerows(_csv_lines(table))
    return written.getvalue()


def cell(text: str) -> str:
    """A text that a spreadsheet shows and does not take for a formula, and that shows all that it holds.

    >>> cell("=1+1"), cell("-0.5 V"), cell("repvgg")
    ("'=1+1", "'-0.5 V", 'repvgg')
    """
    return visible(f"'{text}" if text.startswith(FORMULA) else text)


def _csv_lines(table: Table) -> Iterator[dict[str, Any]]:
    for line in table.lines:
        pairs = list(zip(table.columns, line, strict=True))
        about = {cell(column.name): entry for column, entry in pairs if isinstance(entry, str)}
        for column, entry in pairs:
            if isinstance(entry, Cell) and entry.status != "none":
                where = {"group": column.group, "column": column.name, "unit": column.unit}
                texts = {**_names(table), **about, **where}
                yield {**{key: cell(text) for key, text in texts.items()}, **_cell(entry)}


def as_json(document: Document) -> str:
    """The tables as they are: chapters of tables of columns and lines, with all notes."""
    content = {
        "chapters": [
            {"title": chapter.title, "tables": [_table(table) for table in chapter.tables], "notes": chapter.notes}
            for chapter in document.chapters
        ],
        "notes": document.notes,
    }
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False)
    return INVISIBLE.sub(lambda found: f"\\u{ord(found.group()):04x}", text) + "\n"  # as JSON writes them


def _table(table: Table) -> dict[str, Any]:
    columns = [{"name": column.name, "group": column.group, "unit": column.unit} for column in table.columns]
    lines = [[_cell(entry) if isinstance(entry, Cell) else entry for entry in line] for line in table.lines]
    return {**_names(table), "columns": columns, "lines": lines, "notes": table.legend}


def _names(table: Table) -> dict[str, str]:
    return {"table": table.name, "title": table.title, "subject": table.subject}


def _cell(cell: Cell) -> dict[str, Any]:
    """What is not there is left out."""
    said = {"value": cell.value, "std": cell.std, "n": cell.n or None, "status": cell.status, "best": cell.best or None}
    return {key: value for key, value in said.items() if value is not None}
