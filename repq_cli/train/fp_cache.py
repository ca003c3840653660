"""FP stages kept for other runs, each under the hash of all that determines it. Needs no torch.

``outputs/cache/fp/KEY/`` holds ``fp.pt`` (the checkpoint), ``metrics.jsonl`` (the stage's log) and, written last,
``about.json``; ``KEY.lock`` beside it is held by the process that trains the stage. The operating system frees the lock
of a process that dies, so that the next one in the line trains instead.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repq_cli.errors import DataError
from repq_cli.files import link, locked, write_atomically, write_json
from repq_cli.runs.folder import FP_NET, LOG

ROOT = Path("outputs/cache/fp")
KEY = re.compile("[0-9a-f]{16}")


@dataclass(frozen=True)
class FPCache:
    """The place of one FP stage, which may be empty."""

    key: str
    root: Path = ROOT

    @property
    def folder(self) -> Path:
        """Where the stage is stored."""
        return self.root / self.key

    @property
    def weights(self) -> Path:
        """The stage's checkpoint."""
        return self.folder / FP_NET

    @property
    def log(self) -> Path:
        """The stage's part of metrics.jsonl."""
        return self.folder / LOG

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(path.stat().st_size for path in self.folder.glob("*") if path.is_file())

    def about(self) -> dict[str, Any] | None:
        """What is known of the stored stage (the run that trained it, its times), or None where there is none."""
        try:
            found = json.loads((self.folder / "about.json").read_text())
        except (OSError, ValueError):
            return None
        if not isinstance(found, dict) or not all(isinstance(found.get(key), str) for key in ("run", "sha256")):
            return None
        times = found.get("time")
        sound = isinstance(times, dict) and all(isinstance(value, int | float) for value in times.values())
        return found if sound else None

    def last_used(self) -> float:
        """When a run last trained or took the stage, in seconds as ``time.time()`` counts them."""
        about = self.folder / "about.json"
        return (about if about.exists() else self.folder).stat().st_mtime

    def touch(self) -> None:
        """Note that a run has taken the stage."""
        with contextlib.suppress(OSError):
            os.utime(self.folder / "about.json")

    def held(self, wait: Callable[[], None] | None = None) -> AbstractContextManager[None]:
        """Hold the stage's lock, as ``files.locked`` does."""
        return locked(self.root / f"{self.key}.lock", wait)

    def store(self, weights: Path, log: Path, about: dict[str, Any]) -> None:
        """Keep a finished stage. Raises DataError if the disk is full; nothing half-written is ever found."""
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise DataError(f"{self.folder} cannot be made: {error.strerror}.") from error
        link(weights, self.weights)
        write_atomically(self.log, log.read_bytes())  # no link: the run goes on writing to its own
        write_json(self.folder / "about.json", about | {"sha256": self.digest()})

    def digest(self) -> str:
        """Of the checkpoint's bytes. Raises OSError if there is none."""
        return hashlib.sha256(self.weights.read_bytes()).hexdigest()

    def drop(self) -> None:
        """Forget the stage. Its lock's file stays: a process may be waiting with it open."""
        for path in (self.folder / "about.json", self.weights, self.log, *self.folder.glob(".*.partial")):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it holds something else: that is not ours to remove
            self.folder.rmdir()


def stored(root: Path = ROOT) -> list[FPCache]:
    """Every place that holds something, finished or not."""
    return [FPCache(path.name, root) for path in sorted(root.glob("*")) if path.is_dir() and KEY.fullmatch(path.name)]
