"""Ctrl-C and SIGTERM: where training is at work, a request for the next safe point; elsewhere the end at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from repq_cli.errors import Interrupted

PERIOD = 0.5  # seconds between two looks for the file that asks for a stop


class StopRequest:
    """Set by the first signal, or by ``file`` as soon as it exists; the second signal stops at once."""

    def __init__(self, file: Path | None = None) -> None:
        self.file = file
        self.signal_number: int | None = None
        self._process = os.getpid()
        self.raises = False

    def __call__(self, signal_number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            _end_of_child(signal_number)
        second = self.signal_number is not None
        self.signal_number = self.signal_number or signal_number
        if second or self.raises:
            raise Interrupted(signal_number)

    def __bool__(self) -> bool:
        self._look()
        return self.signal_number is not None

    def check(self) -> None:
        """Raise Interrupted if a stop was asked for."""
        self._look()
        if self.signal_number is not None:
            raise Interrupted(self.signal_number)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside the block a stop need not wait: what is made there is made again by whoever goes on."""
        self.check()
        self.raises = True
        try:
            with _watched(self.file, lambda: self.raises and self.signal_number is None):
                yield
        finally:
            self.raises = False

    def _look(self) -> None:
        if self.signal_number is None and self.file is not None and self.file.exists():
            self.signal_number = signal.SIGTERM


def _end_of_child(signal_number: int) -> None:
    """What a process that was forked off does: our handlers are for the process that they were made in."""
    signal.signal(signal_number, signal.SIG_DFL)
    os.kill(os.getpid(), signal_number)


@contextmanager
def _watched(file: Path | None, due: Callable[[], bool]) -> Iterator[None]:
    """Send this process SIGTERM, once, when ``file`` appears inside the block while it is ``due``.

    That reaches the main thread wherever it is, such as in the midst of reading a data set.
    """
    if file is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    over = threading.Event()

    def watch() -> None:
        while not over.wait(PERIOD):
            if file.exists() and due():
                os.kill(os.getpid(), signal.SIGTERM)
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def stop_request(file: Path | None = None) -> Iterator[StopRequest]:
    """Catch SIGINT and SIGTERM inside the block (in the main thread; elsewhere signals cannot be caught)."""
    request = StopRequest(file)
    with _handled(request, signal.SIGINT, signal.SIGTERM):
        yield request


@contextmanager
def interruptible(file: Path | None = None) -> Iterator[None]:
    """SIGTERM, or ``file`` as soon as it exists, raises Interrupted inside the block, so that all is put in order.

    An error that comes of it elsewhere, such as that of an import which was broken off, is Interrupted as well.
    """
    request = StopRequest()
    request.raises = True
    try:
        with _handled(request, signal.SIGTERM), _watched(file, lambda: signal.getsignal(signal.SIGTERM) is request):
            yield
    except Exception as error:
        if request.signal_number is None:
            raise
        raise Interrupted(request.signal_number) from error


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], object], *numbers: signal.Signals) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
