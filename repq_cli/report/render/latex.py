"""LaTeX for the booktabs package."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from repq_cli.report.cells import Cell
from repq_cli.report.document import Document
from repq_cli.report.table import Column, Table
from repq_cli.text import visible

SPECIAL = {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "Δ": r"$\Delta$",
    "–": "--",
    "−": "$-$",
    "→": r"$\to$",
    "↓": r"$\downarrow$",
} | {sign: f"\\{sign}" for sign in "&%$#_{}"}


KNOWN = "‘’“”—…"  # beside Latin letters, what LaTeX reads without further packages

# As wide as the page where it would be wider.
FITTED = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"


def latex(document: Document) -> str:
    """One ``table`` environment for each table, with its notes below; the document's own notes at the end."""
    parts = ["% needs \\usepackage{booktabs,graphicx}"]
    for chapter in document.chapters:
        parts += ["\n".join(_table(table)) for table in chapter.tables]
        parts += [_note(note) for note in chapter.notes]
    parts += [_note(note) for note in document.notes]
    return "\n\n".join(parts) + "\n"


def _note(note: str) -> str:
    return f"\\noindent{{\\footnotesize {escaped(note)}}}"


def _table(table: Table) -> Iterator[str]:
    alignment = "".join("l" if column.form is None else "r" for column in table.columns)
    yield "\\begin{table}\n\\centering"
    yield f"\\caption{{{escaped(table.caption)}}}"
    yield f"{FITTED}\n\\begin{{tabular}}{{{alignment}}}\n\\toprule"
    if any(column.group for column in table.columns):
        yield from _groups(table.columns)
    yield _row(escaped(column.name) for column in table.columns)
    yield "\\midrule"
    for texts, line in zip(table.texts, table.lines, strict=True):
        yield _row(_emphasised(escaped(text), entry) for text, entry in zip(texts, line, strict=True))
    yield "\\bottomrule\n\\end{tabular}}"
    for note in table.legend:
        yield f"\\par\\smallskip{{\\footnotesize {escaped(note)}\\par}}"
    yield "\\end{table}"


def _groups(columns: tuple[Column, ...]) -> Iterator[str]:
    """Headings over the columns of each group, and the rules below them."""
    words, rules, first = [], [], 1
    for group, members in itertools.groupby(columns, key=lambda column: column.group):
        count = len(list(members))
        if group:
            words.append(f"\\multicolumn{{{count}}}{{c}}{{{escaped(group)}}}")
            rules.append(f"\\cmidrule(lr){{{first}-{first + count - 1}}}")
        else:
            words += [""] * count
        first += count
    yield _row(words)
    yield " ".join(rules)


def _row(words: Iterator[str] | list[str]) -> str:
    return " & ".join(words) + r" \\"


def _emphasised(text: str, entry: str | Cell) -> str:
    if not isinstance(entry, Cell):
        return text
    text = text.replace("-", "$-$", 1) if entry.value is not None and text.startswith("-") else text
    return f"\\textbf{{{text}}}" if entry.best else text


def escaped(text: str) -> str:
    r"""Text that LaTeX prints as it is, in one line; what cannot be seen, or that it has no letter for, as its number.

    >>> print(escaped("50 % of repvgg_a0"), escaped("Größe, 大"))
    50 \% of repvgg\_a0 Größe, [U+5927]
    """
    return "".join(SPECIAL.get(sign) or _letter(sign) for sign in visible(" ".join(text.split())))


def _letter(sign: str) -> str:
    return sign if ord(sign) < 0x180 or sign in KNOWN else f"[U+{ord(sign):04X}]"
