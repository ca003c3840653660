"""Numbers and columns as people read them."""

from __future__ import annotations

import re
import shlex
import shutil
import textwrap
from collections.abc import Sequence
from typing import TextIO

# Control characters, halves of surrogate pairs, and marks that turn the direction of the text around them.
INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")

# A command of ours with its settings, which a terminal may break and a newline may not.
COMMAND = re.compile(r"\brepq [a-z]+(?: (?:--?[a-z]+\b|'[^']*'|[\w.+/~@-]+=\S+))*")

WIDEST = 120  # characters of a line on a terminal; longer ones are hard to read


def columns(lines: Sequence[Sequence[str]], texts: int) -> str:
    """Lines of words under each other: the first ``texts`` columns to the left, the others, numbers, to the right.

    >>> print(columns([["layer", "bytes"], ["a", "12,345"]], 1))
    layer   bytes
    a      12,345
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            word.ljust(width) if index < texts else word.rjust(width)
            for index, (word, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def file_size(count: float) -> str:
    """Bytes with a unit of a thousand.

    >>> file_size(31_207), file_size(2_500_000), file_size(335e9)
    ('31.2 kB', '2.50 MB', '335.00 GB')
    """
    if count >= 1e9:
        return f"{count / 1e9:.2f} GB"
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def scaled(count: float) -> str:
    """Three significant digits and the SI prefix.

    >>> scaled(1_361_451_000), scaled(999)
    ('1.36 G', '999 ')
    """
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= factor:
            return f"{count / factor:.3g} {prefix}"
    return f"{count:g} "


def short(count: float) -> str:
    """A count with its SI prefix, for columns whose heading names the unit."""
    return scaled(count).strip()


def times(factor: float) -> str:
    """How many times as much.

    >>> times(5.153)
    '5.2×'
    """
    return f"{factor:.1f}×"


def relative(factor: float) -> str:
    """How many times as long."""
    return f"{factor:.2f}"


def milliseconds(value: float) -> str:
    """Three digits, or all of those before the point.

    >>> milliseconds(6.943), milliseconds(14.0), milliseconds(1234.5)
    ('6.94', '14.0', '1234')
    """
    decimals = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{decimals}f}"


def moment(time: str) -> str:
    """A row's time as people write it; another text as it is.

    >>> moment("2026-01-01T12:00:00+00:00")
    '2026-01-01 12:00:00 UTC'
    """
    return re.sub(r"^([0-9-]+)T([0-9:]+)\+00:00$", r"\1 \2 UTC", time)


def visible(text: str) -> str:
    r"""``text`` with what cannot be seen, or would change how its neighbours look, as Python writes it.

    >>> print(visible("a\u202eb\x00"))
    a\u202eb\x00
    """
    return INVISIBLE.sub(lambda found: ascii(found.group())[1:-1], text)


def wrapped(text: str, width: int) -> str:
    """Lines of at most ``width`` characters, broken between words and indented as they began; a word is never broken.

    What stands in columns, two spaces or more between words, is broken in its last column alone, and left as it is
    where that would be narrow, as are lines of Markdown's tables.

    >>> print(wrapped("repq: a sentence of some words", 25))
    repq: a sentence of some
      words
    >>> print(wrapped("Go on with: repq train resume=runs/a", 25))
    Go on with:
      repq train resume=runs/a
    >>> print(wrapped("  WARNING  a sentence of some words", 34))
      WARNING  a sentence of some
               words
    """
    whole = COMMAND.sub(lambda found: found.group().replace(" ", "\0"), text)
    return "\n".join(_wrapped_line(line, width) for line in whole.split("\n")).replace("\0", " ")


def _wrapped_line(line: str, width: int) -> str:
    if len(line) <= width or line.startswith("|"):
        return line
    start, gap, _ = line.rstrip().rpartition("  ")
    indent = " " * (len(start) + len(gap) if start.strip() else len(line) - len(line.lstrip()) + 2)
    if len(indent) > width - 20:
        return line
    return textwrap.fill(
        line,
        width,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=True,
        replace_whitespace=False,
    )


def fitted(text: str, stream: TextIO | None) -> str:
    """A text with lines that fit a terminal; as it is for any other stream, whose lines programs may read."""
    if stream is None or not stream.isatty():
        return text
    return wrapped(text, min(WIDEST, shutil.get_terminal_size().columns))


def shortened(value: object, most: int = 80) -> str:
    """A value as text of at most ``most`` characters on one line, its middle left out where it has more.

    >>> shortened("a" * 40 + "b" * 40, 21)
    'aaaaaaaaaa…bbbbbbbbbb'
    """
    text = " ".join(str(value).split(chr(10)))
    return text if len(text) <= most else f"{text[: most // 2]}…{text[len(text) - (most - 1) // 2 :]}"


def command(*words: object) -> str:
    """A command of ours as a shell takes it.

    >>> print(command("train", "resume=runs/my run"))
    repq train 'resume=runs/my run'
    """
    return shlex.join(["repq", *map(str, words)])


def setting(key: str, value: object) -> str:
    """``key=value`` as Hydra takes it: quoted where its grammar has a meaning of its own for the value.

    >>> print(setting("run", "runs/a"), setting("run", "runs/a,b"))
    run=runs/a run="runs/a,b"
    """
    text = str(value)
    if re.fullmatch(r"[\w./+ -]*", text, re.ASCII):
        return f"{key}={text}"
    escaped = text.replace('"', '\\"')
    return f'{key}="{escaped}"'
