"""What a command prints shows all that it holds: names of files and of runs may be anybody's."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from repq_cli.text import visible

OF_BARS = re.compile("(\r|\x1b\\[A)")  # with which progress bars move


class Shown:
    """A stream whose texts come out with control characters, and marks that turn directions, as Python writes them.

    bars: whether what moves a progress bar passes.
    """

    def __init__(self, stream: TextIO, bars: bool) -> None:
        self._stream, self._bars = stream, bars

    def write(self, text: str) -> int:
        """As a text stream's."""
        parts = OF_BARS.split(text) if self._bars else [text]
        self._stream.write("".join(part if index % 2 else visible(part) for index, part in enumerate(parts)))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """As a text stream's."""
        for line in lines:
            self.write(line)

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
