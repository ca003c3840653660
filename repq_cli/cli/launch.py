"""``runtime.devices=N``: torchrun's own machinery starts this command N times on this machine."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from tempfile import TemporaryDirectory

from repq_cli.errors import Interrupted, RanksError
from repq_cli.neighbours import cores

# For processes that are started: since Python 3.11 they take no modules from the folder that they start in.
NO_MODULES_HERE = ("PYTHONSAFEPATH", "1")
PROCESS = 200 << 20  # bytes that one takes at least, with torch
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)  # those that it passes on


def launch(devices: int, arguments: Sequence[str], restarts: int = 0) -> int:
    """``repq train`` with these arguments as ``devices`` processes; the exit code of the first that failed.

    restarts: how often all are started again, and go on, after one has failed. Raises Interrupted for a signal, which
    all have heard of and answered, and RanksError where the one that would tell what is wrong was killed.
    """
    from repq_cli.memory import require_memory  # with torch, which a help does without

    require_memory(devices * PROCESS, f"runtime.devices={devices}, a process each,", "start fewer")
    with TemporaryDirectory(prefix="repq-") as notes:  # else torch leaves one behind for each run
        return _launched(devices, arguments, restarts, notes)


def _launched(devices: int, arguments: Sequence[str], restarts: int, notes: str) -> int:
    """notes: a folder for what the processes tell torch of their errors."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=devices,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=f"repq-{os.getpid()}",
        max_restarts=restarts,
        logs_specs=DefaultLogsSpecs(log_dir=notes),
    )
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # rank 0 says what is wrong, and in a sentence
    os.environ.setdefault(*NO_MODULES_HERE)
    with _own_signals(), _threads_for(devices):
        try:
            elastic_launch(config, sys.executable)("-m", "repq_cli", "train", *arguments)
        except SignalException as stop:
            interruption = Interrupted(stop.sigval)
            interruption.told = True  # by rank 0
            raise interruption from None
        except ChildFailedError as failed:
            rank, failure = failed.get_first_failure()
            if failure.exitcode > 0:
                return int(failure.exitcode)
            if rank > 0:  # rank 0 has said so
                return RanksError.exit_code
            raise RanksError(
                f"Rank 0 (process {failure.pid}) was killed by {failure.signal_name()}: go on with resume=auto or the "
                f"run's folder."
            ) from None
    return 0


@contextmanager
def _own_signals() -> Iterator[None]:
    """Give the handlers back that torch replaces."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _threads_for(processes: int) -> Iterator[None]:
    """Share the cores out, unless the user has."""
    before = os.environ.get("OMP_NUM_THREADS")
    if before is None:
        os.environ["OMP_NUM_THREADS"] = str(max(1, cores() // processes))
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
