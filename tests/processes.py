"""``repq`` in processes of its own, for tests that stop or kill it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

# A copy of this process has imported everything already. CUDA and other systems' libraries do not survive the copying.
METHOD = "fork" if sys.platform == "linux" and not torch.cuda.is_available() else "spawn"


class Process:
    """``repq`` with these arguments, in a process group of its own as a terminal starts it, in the current folder.

    What it prints is appended to the file ``log``; None: its standard output is closed.
    """

    def __init__(self, *arguments: str, log: str | None = "log", **environment: str) -> None:
        self._start(_run, arguments, log, environment)

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        self._process = multiprocessing.get_context(METHOD).Process(target=target, args=arguments)  # type: ignore[attr-defined]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside the threads of pytest-xdist
            self._process.start()
        self.pid: int = self._process.pid

    def wait(self, timeout: float = 120) -> int:
        """The exit code; that of a process killed by a signal is its number, negative."""
        self._process.join(timeout)
        assert self._process.exitcode is not None, "The process does not end."
        return int(self._process.exitcode)

    def is_alive(self) -> bool:
        """Whether it runs."""
        return bool(self._process.is_alive())

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def end(self) -> None:
        """Kill it and what it has started, if it still runs."""
        if self._process.is_alive():
            os.killpg(self.pid, signal.SIGKILL) if os.getpgid(self.pid) == self.pid else self._process.kill()
        self._process.join()


class Function(Process):
    """A function in a process of its own."""

    def __init__(self, function: Callable[..., None], *arguments: object) -> None:
        self._start(_call, function, arguments)


def _call(function: Callable[..., None], arguments: tuple[object, ...]) -> None:
    _as_a_new_process("log")
    function(*arguments)


def _run(arguments: tuple[str, ...], log: str | None, environment: dict[str, str]) -> None:
    """What a new process does."""
    os.environ |= environment
    _as_a_new_process(log)
    from repq_cli.cli import main

    sys.exit(main(list(arguments)))


def _as_a_new_process(log: str | None) -> None:
    """Python's own handlers of signals and streams instead of pytest's, and no place among ranks yet."""
    if entered := sys.modules.get("repq_cli.train.world"):
        entered._world = None  # type: ignore[attr-defined]
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    file = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    if log is None:
        os.close(1)
        sys.stdout = None  # type: ignore[assignment]


def wait_until(true: Callable[[], bool], process: Process | None = None) -> None:
    """Wait for something that ``process`` is about to do; it fails at once where that one has ended without."""
    deadline = time.monotonic() + 120
    while not true():
        ended = process is not None and not process._process.is_alive() and not true()
        assert not ended, Path("log").read_text()
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)
