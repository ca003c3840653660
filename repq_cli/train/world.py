"""The processes of one run: how they meet, tell each other things, add up tensors, and learn that one has died.

What takes long on one rank alone (data, a stage that another run trains, files) is waited for at the store, without
limit while that rank lives; ``torch.distributed`` is for what all ranks do at the same time, and has one.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import distributed_c10d
from torch.distributed.rendezvous import rendezvous

from repq_cli.errors import CheckError, ConfigError, DataError, RanksError, RepqError
from repq_cli.ranks import Place, place
from repq_cli.train.notes import Notes, Pulse

PERIOD = 0.05  # seconds between two looks at the store
BEGUN = "repq-folder"
GRACE = 5.0  # seconds in which ranks that live say what has stopped them
KINDS = {kind.__name__: kind for kind in (ConfigError, DataError, CheckError, RanksError, RepqError)}
TELLING = (DataError, ConfigError, CheckError, RepqError)  # of several errors the first of these is the cause


class World:
    """A process that has no others: what it tells it knows, and its sums are its own."""

    rank, size = 0, 1

    @property
    def leads(self) -> bool:
        """Whether this rank has the folder, the log and the terminal."""
        return self.rank == 0

    def share(self, value: Any = None) -> Any:
        """What rank 0 passes, on every rank: plain JSON. Waited for without limit."""
        return value

    def meet(self) -> None:
        """Wait for all ranks, without limit."""

    def broadcast(self, value: Any = None) -> Any:
        """What rank 0 passes, on every rank: anything that can be pickled, tensors on the CPU."""
        return value

    def added_up(self, values: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        return values

    def gathered(self, own: Tensor, count: int) -> Tensor:
        """Of ``count`` values, of which a rank has every ``size``-th, all in order."""
        return own

    def cause(self, error: BaseException) -> BaseException:
        """What has really stopped the run that ``error`` has stopped here."""
        return error

    def told(self, error: BaseException) -> None:
        """Let the others know what has stopped this rank."""

    def take_over(self, net: nn.Module) -> None:
        """Give all ranks rank 0's parameters and buffers."""

    def close(self) -> None:
        """Leave the group."""


ALONE = World()


class Ranks(World):
    """One of several processes. Raises RanksError, with the reason, where another one has failed."""

    def __init__(self, where: Place) -> None:
        self.place, self.rank, self.size = where, where.rank, where.size
        self.check_stop: Callable[[], None] = lambda: None
        store, rank, size = next(rendezvous("env://", timeout=timedelta(minutes=5)))
        assert (rank, size) == (self.rank, self.size)
        self._of_all_attempts = store
        of_this = distributed_c10d.PrefixStore(f"attempt-{where.attempt}", store)  # torch's names would be taken
        self._for_group = distributed_c10d.PrefixStore("group", of_this)
        at = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        self.notes = Notes(distributed_c10d.PrefixStore("repq", of_this), at)
        self._shared = self._met = 0
        self.notes.set(f"process/{self.rank}", f"{socket.gethostname()}, process {os.getpid()}")
        self._pulse = Pulse(self.notes, self.rank, self.size)

    def begin(self, folder: Path | None = None) -> Path | None:
        """Keep the run's folder for later attempts of the same launcher; or the one that an earlier attempt kept."""
        store = self._of_all_attempts
        if folder is not None:
            store.set(BEGUN, str(folder.absolute()))
        return Path(store.get(BEGUN).decode()) if store.check([BEGUN]) else None

    def connect(self, device: torch.device, seconds: float) -> None:
        """Make the group of all ranks, whose operations wait for each other ``seconds`` at most."""
        self.notes.patience = seconds
        importlib.import_module("torch._dynamo")  # as DistributedDataParallel would, while others wait for this rank
        self.meet()
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(
            backend, store=self._for_group, rank=self.rank, world_size=self.size, timeout=timedelta(seconds=seconds)
        )
        self.device = device

    def close(self) -> None:
        """Leave the group."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def share(self, value: Any = None) -> Any:
        """What rank 0 passes, through the store."""
        key = f"shared/{self._shared}"
        self._shared += 1
        if self.rank == 0:
            self.notes.set(key, json.dumps(value))
            return value
        self._wait(key)
        return json.loads(self.notes.get(key))

    def meet(self) -> None:
        """Each tells that it is here, and waits for the last."""
        self._met += 1
        arrived = self.notes.add(f"met/{self._met}", 1)
        if arrived == self.size:
            self.notes.set(f"met/{self._met}/all", "")
        self._wait(f"met/{self._met}/all")

    def _wait(self, key: str) -> None:
        while not self.notes.check(key):
            self.check_stop()
            if self.notes.check("failed") or self._pulse.silent():
                raise RanksError("Another rank has failed.")
            time.sleep(PERIOD)

    def broadcast(self, value: Any = None) -> Any:
        """Through the group."""
        found = [value]
        dist.broadcast_object_list(found, 0)
        return found[0]

    def added_up(self, values: Tensor) -> Tensor:
        """By ``all_reduce``."""
        dist.all_reduce(values)
        return values

    def gathered(self, own: Tensor, count: int) -> Tensor:
        """By ``all_gather``, padded to one length."""
        longest = -(-count // self.size)
        padded = torch.cat([own, own.new_zeros(longest - len(own))])
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return torch.stack(parts, 1).flatten()[:count]

    def take_over(self, net: nn.Module) -> None:
        """Give all ranks rank 0's parameters and buffers."""
        state = {key: value.cpu() for key, value in net.state_dict().items()} if self.rank == 0 else None
        net.load_state_dict(self.broadcast(state))

    def told(self, error: BaseException) -> None:
        """At the store, where the others look, if it is there."""
        kind = next((name for name, kind in KINDS.items() if type(error) is kind), "")
        if isinstance(error, KeyboardInterrupt) or (isinstance(error, RuntimeError) and _is_of_the_group(error)):
            kind = "lost"
        said = {"kind": kind, "message": str(error) if kind else f"{type(error).__name__}: {error}"}
        with suppress(RanksError):
            self.notes.set(f"failed/{self.rank}", json.dumps(said))
            self.notes.set("failed", "")

    def cause(self, error: BaseException) -> BaseException:
        """The most telling of all ranks' errors, or that some are gone without a word."""
        self.notes.patience = GRACE
        self.told(error)
        try:
            return self._cause(error)
        except RanksError as gone:
            return gone

    def _cause(self, error: BaseException) -> BaseException:
        end = time.monotonic() + GRACE
        while not (found := self._failures()).keys() >= set(range(self.size)) and time.monotonic() < end:
            time.sleep(PERIOD)
        for kind in TELLING:
            for rank, said in sorted(found.items()):
                if KINDS.get(said["kind"]) is kind:
                    return error if rank == self.rank else kind(f"{said['message']} (Rank {rank}.)")
        for rank, said in sorted(found.items()):
            if said["kind"] == "":
                return error if rank == self.rank else RanksError(f"Rank {rank} failed: {said['message']}")
        gone = sorted(set(range(self.size)) - found.keys())
        if not gone:
            return error
        who = " and ".join(f"{rank} ({self.notes.get(f'process/{rank}')})" for rank in gone)
        return RanksError(
            f"Rank {who} died without a word, or hangs: it was killed, or its memory or its machine failed."
        )

    def speaks(self) -> bool:
        """Whether this rank is the first of those that are left to say what has stopped them."""
        try:
            return self.rank == min(self._failures())
        except RanksError:
            return True

    def _failures(self) -> dict[int, dict[str, str]]:
        ranks = [rank for rank in range(self.size) if self.notes.check(f"failed/{rank}")]
        return {rank: json.loads(self.notes.get(f"failed/{rank}")) for rank in ranks}


def _is_of_the_group(error: RuntimeError) -> bool:
    """Whether an error says that others do not answer."""
    words = ("gloo", "nccl", "connection", "timed out", "timeout", "socket", "broken pipe")
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)


_world: World | None = None


def world() -> World:
    """That of this process, which it enters at the first call."""
    global _world
    if _world is None:
        where = place()
        _world = ALONE if where is None else Ranks(where)
    return _world
