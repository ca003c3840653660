"""Standard output that may be full, closed or gone."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from repq_cli.errors import DataError


class Output:
    """Stands for a stream that may be None.

    What cannot be written is a DataError, or, where the stream is ``spared``, dropped and kept as ``error``.
    """

    def __init__(self, stream: TextIO | None, spared: bool) -> None:
        self.stream, self.spared = stream, spared
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        """As a stream does."""
        if self.error is None:
            with self._caught():
                if self.stream is None:
                    raise OSError(errno.EBADF, "it is closed")
                self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """As a stream does."""
        if self.error is None and self.stream is not None:
            with self._caught():
                self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream if self.stream is not None else sys.__stderr__, name)

    @contextmanager
    def _caught(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self.stream is not None:
                with contextlib.suppress(OSError, ValueError):  # what is left in it must not fail once more, at the end
                    os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
            if not self.spared:
                if isinstance(error, BrokenPipeError):
                    raise
                raise DataError(
                    f"Standard output cannot be written ({error.strerror}): send it somewhere else."
                ) from error
            self.error = error


@contextmanager
def guarded_output(spared: bool) -> Iterator[None]:
    """Print through an ``Output`` inside the block. spared: its loss is a warning at the end, and no failure."""
    before = sys.stdout
    sys.stdout = output = Output(before, spared)
    try:
        yield
        output.flush()
    finally:
        if sys.stdout is output:
            sys.stdout = before
        if output.error is not None and not isinstance(output.error, BrokenPipeError):
            print(f"repq: Standard output could not be written ({output.error.strerror}); files are.", file=sys.stderr)
