"""Tables in columns, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from repq_cli.report.document import Chapter, Document
from repq_cli.report.render.markdown import heading
from repq_cli.report.table import Table
from repq_cli.text import columns


def text(document: Document) -> str:
    """All chapters, each with its notes below; columns of words have to come before those of numbers."""
    parts = [part for chapter in document.chapters for part in _chapter(chapter)]
    return "\n\n".join([*parts, *(["\n".join(document.notes)] if document.notes else [])]) + "\n"


def _chapter(chapter: Chapter) -> Iterator[str]:
    yield chapter.title
    for table in chapter.tables:
        yield "\n".join([table.title, _table(table), *table.legend])
    if chapter.notes:
        yield "\n".join(chapter.notes)


def _table(table: Table) -> str:
    words = sum(column.form is None for column in table.columns)
    return columns([[heading(column) for column in table.columns], *table.texts], words)
