"""Markdown whose source reads as well as its rendering."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from repq_cli.report.cells import Cell
from repq_cli.report.document import Chapter, Document
from repq_cli.report.table import Column, Table
from repq_cli.text import visible

# Signs that Markdown would take for its own; underscores only at the ends of words.
SPECIAL = re.compile(r"[\\|*`\[\]]|(?<!\w)_|_(?!\w)")


def markdown(document: Document) -> str:
    """All chapters, each with its notes below, then the notes on runs."""
    parts = [part for chapter in document.chapters for part in _chapter(chapter)]
    if document.notes:
        parts += ["## Notes on runs", _list(document.notes)]
    return "\n\n".join(parts) + "\n"


def _chapter(chapter: Chapter) -> Iterator[str]:
    yield f"## {escaped(chapter.title)}"
    for table in chapter.tables:
        yield f"### {escaped('; '.join(part for part in (table.title, table.statistics) if part))}"
        yield _table(table)
        if table.legend:
            yield _list(table.legend)
    if chapter.notes:
        yield "Notes on these tables:"
        yield _list(chapter.notes)


def _list(notes: Sequence[str]) -> str:
    return "\n".join(f"- {escaped(note)}" for note in notes)


def _table(table: Table) -> str:
    header = [escaped(heading(column)) for column in table.columns]
    lines = [
        [_emphasised(escaped(text), entry) for text, entry in zip(texts, line, strict=True)]
        for texts, line in zip(table.texts, table.lines, strict=True)
    ]
    widths = [max(3, *map(len, column)) for column in zip(header, *lines, strict=True)]
    numbers = [column.form is not None for column in table.columns]
    rule = [f"{'-' * (width - 1)}:" if number else "-" * width for width, number in zip(widths, numbers, strict=True)]
    aligned = [_aligned(line, widths, numbers) for line in [header, *lines]]
    return "\n".join(f"| {' | '.join(line)} |" for line in [aligned[0], rule, *aligned[1:]])


def heading(column: Column) -> str:
    """The group's name in front, since Markdown has no headings over several columns."""
    return f"{column.group} {column.name}".strip()


def _aligned(words: Sequence[str], widths: Sequence[int], numbers: Sequence[bool]) -> list[str]:
    cells = zip(words, widths, numbers, strict=True)
    return [word.rjust(width) if number else word.ljust(width) for word, width, number in cells]


def _emphasised(text: str, entry: str | Cell) -> str:
    return f"**{text}**" if isinstance(entry, Cell) and entry.best else text


def escaped(text: str) -> str:
    r"""Text that Markdown prints as it is, in one line, with what cannot be seen as Python writes it.

    >>> print(escaped("a|b <i> _x_ repvgg_a0"))
    a\|b &lt;i> \_x\_ repvgg_a0
    """
    flat = visible(" ".join(text.split()))
    return SPECIAL.sub(lambda found: f"\\{found.group()}", flat.replace("&", "&amp;").replace("<", "&lt;"))
