"""FP stages kept for other runs, each under the hash of all that determines it. Needs no torch.

``outputs/cache/fp/KEY/`` holds ``fp.pt`` (the checkpoint), ``metrics.jsonl`` (the stage's log) and, written last,
``about.json``; ``KEY.lock`` beside it is held by the process that trains the stage. The operating system frees the lock
of a process that dies, so that the next one in the line trains instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from repq_cli.errors import DataError
from repq_cli.files import PASSING, link, read_regular, write_atomically
from repq_cli.kept import Kept, places
from repq_cli.runs.folder import FP_NET, LOG
from repq_cli.sealed import file_digest

ROOT = Path("outputs/cache/fp")


@dataclass(frozen=True)
class FPCache(Kept):
    """The place of one FP stage, which may be empty."""

    root: Path = ROOT
    one: ClassVar[str] = "stage"
    many: ClassVar[str] = "stages"
    done_to: ClassVar[str] = "trained"

    @property
    def weights(self) -> Path:
        """The stage's checkpoint."""
        return self.folder / FP_NET

    @property
    def log(self) -> Path:
        """The stage's part of metrics.jsonl."""
        return self.folder / LOG

    def is_sound(self, about: dict[str, Any]) -> bool:
        """Whether it tells the run that trained the stage, its times and its digest."""
        times = about.get("time")
        return (
            all(isinstance(about.get(key), str) for key in ("run", "sha256"))
            and isinstance(times, dict)
            and all(isinstance(value, int | float) for value in times.values())
        )

    def files(self) -> Iterable[Path]:
        """Checkpoint and log."""
        return (self.weights, self.log)

    def store(self, weights: Path, log: Path, about: dict[str, Any]) -> None:
        """Keep a finished stage. Raises DataError if the disk is full; nothing half-written is ever found."""
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise DataError(f"{self.folder} cannot be made: {error.strerror}.") from error
        link(weights, self.weights)
        write_atomically(self.log, read_regular(log))  # no link: the run goes on writing to its own
        self.describe(about | {"sha256": file_digest(self.weights), "log_sha256": file_digest(self.log)})

    def damage(self, about: dict[str, Any]) -> str | None:
        """Which file is not what was stored, by the digests of ``about``; None where all are.

        Raises OSError where that cannot be seen now.
        """
        for path, wanted in ((self.weights, about["sha256"]), (self.log, about.get("log_sha256"))):
            try:
                if wanted is not None and file_digest(path) != wanted:  # earlier versions stored none of the log
                    return f"{path} is not what was stored."
            except OSError as error:
                if error.errno in PASSING:
                    raise
                return f"{path} cannot be read ({error.strerror})."
        return None


def stored(root: Path = ROOT) -> list[FPCache]:
    """Every place that holds something, finished or not."""
    return places(root, FPCache)
