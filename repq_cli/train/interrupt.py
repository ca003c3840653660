"""Ctrl-C and SIGTERM: where training is at work, a request for the next safe point; elsewhere the end at once."""

from __future__ import annotations

import functools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

from repq_cli.errors import Interrupted

PERIOD = 0.5  # seconds between two looks for the file that asks for a stop


class Mark(Protocol):
    """A file, or several, by which another process asks for a stop."""

    def exists(self) -> bool:
        """Whether it asks."""
        ...


@functools.cache  # since later on the handler is ours
def preempting() -> tuple[signal.Signals, ...]:
    """The signal on which submitit, in one of its jobs, has the scheduler start that job once more; else none.

    A job that has to make room on Slurm gets it, some with SIGTERM in front of it.
    """
    numbers = [getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name)]
    modules = {number: getattr(signal.getsignal(number), "__module__", None) for number in numbers}
    return tuple(number for number, module in modules.items() if str(module).startswith("submitit."))


def hand_back() -> None:
    """In a job of submitit, let the scheduler start it once more, and end; elsewhere nothing.

    Raises submitit's error where it has been started often enough.
    """
    for number in preempting():
        signal.raise_signal(number)


class StopRequest:
    """Set by the first signal, or by ``file`` as soon as it exists; the second signal stops at once.

    But not where a scheduler sends several of them for one thing.
    """

    def __init__(self, file: Mark | None = None) -> None:
        self.file = file
        self.signal_number: int | None = None
        self._process, self._scheduled = os.getpid(), bool(preempting())
        self.raises = False

    def __call__(self, signal_number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            _end_of_child(signal_number)
        second = self.signal_number is not None and not self._scheduled
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
def _watched(file: Mark | None, due: Callable[[], bool]) -> Iterator[None]:
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
def stop_request(file: Mark | None = None) -> Iterator[StopRequest]:
    """Catch SIGINT, SIGTERM and a scheduler's signal in the block, where that is of the main thread: others cannot."""
    request = StopRequest(file)
    with _handled(request, signal.SIGINT, signal.SIGTERM, *preempting()):
        yield request


@contextmanager
def interruptible(file: Mark | None = None) -> Iterator[None]:
    """SIGTERM, a scheduler's signal, or ``file`` as soon as it exists, raises Interrupted inside the block.

    An error that comes of it elsewhere, such as that of an import which was broken off, is Interrupted as well.
    """
    request = StopRequest()
    request.raises = True
    try:
        due = functools.partial(_is_handler, request)
        with _handled(request, signal.SIGTERM, *preempting()), _watched(file, due):
            yield
    except Exception as error:
        if request.signal_number is None:
            raise
        raise Interrupted(request.signal_number) from error


def _is_handler(request: StopRequest) -> bool:
    return signal.getsignal(signal.SIGTERM) is request


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
