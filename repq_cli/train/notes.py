"""Notes that the ranks of a run leave for each other at torch's store, signs of life among them."""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable
from threading import Event, Thread
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from repq_cli.errors import RanksError

PATIENCE = 60.0  # seconds, until a run has said how long its ranks wait for each other
BEAT = 1.0  # seconds between two signs of life


class Notes:
    """A store whose answers are waited for ``patience`` seconds. Raises RanksError where none comes.

    Of a process that has died the store knows; of one that is stopped it does not, and torch would wait without end.
    """

    def __init__(self, store: Store, where: str) -> None:
        self.store, self.where, self.patience = store, where, PATIENCE

    def set(self, key: str, value: str) -> None:
        """Leave a note."""
        self._answer(lambda: self.store.set(key, value))

    def get(self, key: str) -> str:
        """One that is there."""
        return str(self._answer(lambda: self.store.get(key).decode()))

    def check(self, key: str) -> bool:
        """Whether it is there."""
        return bool(self._answer(lambda: self.store.check([key])))

    def add(self, key: str, count: int) -> int:
        """Count up; the sum of all that have."""
        return int(self._answer(lambda: self.store.add(key, count)))

    def _answer(self, ask: Callable[[], Any]) -> Any:
        found: list[Any] = []

        def carry_out() -> None:
            try:
                found.append(ask())
            except dist.DistError as error:
                found.append(error)

        thread = Thread(target=carry_out, daemon=True)
        thread.start()
        thread.join(self.patience)
        if not found or isinstance(found[0], dist.DistError):
            why = "nothing is there" if found else f"no answer for {self.patience:g} seconds"
            raise RanksError(
                f"Rank 0, or the launcher, which keeps the ranks' notes at {self.where}, died without a word, or hangs "
                f"({why})."
            ) from (found[0] if found else None)
        return found[0]


class Pulse:
    """Signs of life, of this rank in a thread of its own, and of the others where they are looked for.

    Whatever a rank does, its thread counts on while the process runs at all: one whose count stands still is stopped,
    killed, or its machine is gone.
    """

    def __init__(self, notes: Notes, rank: int, size: int) -> None:
        self.notes, self.size = notes, size
        self._seen: dict[int, tuple[int, int]] = {}  # the count of each rank, and how many looks have found it so
        self._looked = 0.0
        self._ends = Event()
        own = notes.store.clone()  # a connection of its own, which no other question holds up
        self._thread = Thread(target=_beat, args=(own, _key(rank), self._ends), daemon=True)
        self._thread.start()
        atexit.register(self.stop)  # Python ends threads harshly that are in torch

    def silent(self) -> list[int]:
        """The ranks that had begun to count and have not counted on for as long as the notes have patience.

        Looks are counted, not seconds, so that nobody is missed after all processes have been stopped together.
        """
        if time.monotonic() - self._looked > BEAT:
            self._looked = time.monotonic()
            for rank in range(self.size):
                count = self.notes.add(_key(rank), 0)
                before, looks = self._seen.get(rank, (0, 0))
                self._seen[rank] = count, (looks + 1 if 0 < count == before else 0)
        return [rank for rank, (_, looks) in self._seen.items() if looks * BEAT > self.notes.patience]

    def stop(self) -> None:
        """Count no further."""
        self._ends.set()
        self._thread.join(BEAT)


def _key(rank: int) -> str:
    return f"beats/{rank}"


def _beat(store: Store, key: str, ends: Event) -> None:
    while not ends.is_set():
        try:
            store.add(key, 1)
        except dist.DistError:  # of which this rank hears where it asks
            return
        ends.wait(BEAT)
