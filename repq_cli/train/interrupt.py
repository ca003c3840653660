"""Ctrl-C and SIGTERM as a request that training answers at the next safe point."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from repq_cli.errors import Interrupted


class StopRequest:
    """Set by the first signal, or by ``file`` as soon as it exists; the second signal stops at once."""

    def __init__(self, file: Path | None = None) -> None:
        self.file = file
        self.signal_number: int | None = None

    def __call__(self, signal_number: int, frame: FrameType | None) -> None:
        if self.signal_number is not None:
            raise Interrupted(signal_number)
        self.signal_number = signal_number

    def __bool__(self) -> bool:
        self._look()
        return self.signal_number is not None

    def check(self) -> None:
        """Raise Interrupted if a stop was asked for."""
        self._look()
        if self.signal_number is not None:
            raise Interrupted(self.signal_number)

    def _look(self) -> None:
        if self.signal_number is None and self.file is not None and self.file.exists():
            self.signal_number = signal.SIGTERM


@contextmanager
def stop_request(file: Path | None = None) -> Iterator[StopRequest]:
    """Catch SIGINT and SIGTERM inside the block (in the main thread; elsewhere signals cannot be caught)."""
    request = StopRequest(file)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
