"""What a command prints shows all that it holds: names of files and of runs may be anybody's.

On a terminal sentences end where words do, and a word in front of them may have a colour.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from repq_cli.text import fitted, visible

OF_BARS = re.compile("(\r|\x1b\\[A)")  # with which progress bars move
RED = "31"
LONGEST_WORD, LONGEST_LINE = 300, 2000  # of a message; what is longer was given to us, and is no sentence


class Shown:
    """A stream whose texts come out with control characters, and marks that turn directions, as Python writes them.

    bars: whether what moves a progress bar passes; else lines are made to fit a terminal.
    """

    def __init__(self, stream: TextIO, bars: bool) -> None:
        self._stream, self._bars = stream, bars

    def write(self, text: str) -> int:
        """As a text stream's."""
        self.writelines([text if self._bars else fitted(text, self._stream)])
        return len(text)

    def writelines(self, lines: Any) -> None:
        """As a text stream's, of any length: what programs read is not broken on a terminal either."""
        for line in lines:
            parts = OF_BARS.split(line) if self._bars else [line]
            self._stream.write("".join(part if index % 2 else visible(part) for index, part in enumerate(parts)))

    def start(self, word: str, colour: str) -> None:
        """Write a word in a colour."""
        self._stream.write(f"\x1b[{colour}m{word}\x1b[0m")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def shown_output() -> Iterator[None]:
    """Print what is visible alone inside the block."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (
        None if stream is None else Shown(stream, bars) for stream, bars in zip(before, (False, True), strict=True)
    )
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def has_colours(stream: TextIO | None) -> bool:
    """Whether a stream is a terminal with colours, and nobody asks for none (https://no-color.org)."""
    return (
        stream is not None and stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    )


def complaint(text: str) -> None:
    """Print ``repq: TEXT`` to standard error. What it repeats of other people's words is cut to a line."""
    words = re.sub(rf"\S{{{LONGEST_WORD + 1},}}", lambda found: _cut(found.group(), LONGEST_WORD), text)
    lines = fitted("\n".join(_cut(line, LONGEST_LINE) for line in f"repq: {words}".split("\n")), sys.stderr)
    if has_colours(sys.stderr) and isinstance(sys.stderr, Shown):
        sys.stderr.start("repq:", RED)
        lines = lines.removeprefix("repq:")
    print(lines, file=sys.stderr)


def say(text: str) -> None:
    """Print sentences to standard output, in lines that fit it."""
    print(fitted(text, sys.stdout), flush=True)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-(most - 1) // 2 :]}"
