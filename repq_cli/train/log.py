"""What a run says: train.log and the terminal, metrics.jsonl, trackers, a progress bar."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from repq_cli.errors import DataError
from repq_cli.files import parsed_json, read_regular, way_out, write_atomically
from repq_cli.runs.folder import RunFolder
from repq_cli.runs.row import prune
from repq_cli.sealed import file_digest
from repq_cli.text import fitted
from repq_cli.train.trackers.tracker import Trackers

logger = logging.getLogger("repq")

SECONDS_BETWEEN_LINES = 10.0


class _File(logging.FileHandler):
    """A full disk is an error like any other, and no traceback beside the run."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        with contextlib.suppress(OSError):
            self.close()
        self.setLevel(logging.CRITICAL + 1)  # said once
        raise DataError(f"{self.baseFilename} cannot be written ({error.strerror}): free some space.") from error


def require_no_special(path: Path) -> None:
    """Raise DataError for a pipe, a device or a folder where a file is to be written: opening it might never end."""
    if os.path.lexists(path) and not path.is_file():
        raise DataError(f"{path} is no regular file: remove it, or choose another folder.")


def whole_lines(content: bytes) -> bytes:
    r"""The lines at the beginning that are each a whole JSON object.

    >>> whole_lines(b'{"a": 1}\n{"a": 2}\n{"a"')
    b'{"a": 1}\n{"a": 2}\n'
    """
    end = 0
    for line in content.splitlines(keepends=True):
        try:
            parsed_json(line)
        except ValueError:
            break
        if not line.endswith(b"\n"):
            break
        end += len(line)
    return content[:end]


class _Terminal(logging.Handler):
    """Prints above a progress bar rather than through it; a terminal that is gone ends no training."""

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stdout is None:
            return
        with contextlib.suppress(OSError, ValueError):
            tqdm.write(fitted(self.format(record), sys.stdout), file=sys.stdout)
            sys.stdout.flush()


@contextmanager
def logging_to(path: Path, verbosity: str) -> Iterator[None]:
    """Send the ``repq`` logger to ``path`` (appending) and to the terminal, as loud as ``verbosity`` asks."""
    require_no_special(path)
    try:
        file: logging.Handler = _File(path)
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror}): {way_out(error)}.") from error
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    terminal = _Terminal()
    terminal.setFormatter(logging.Formatter("%(message)s"))
    terminal.setLevel({"quiet": logging.WARNING, "normal": logging.INFO, "debug": logging.DEBUG}[verbosity])
    before = logger.level, logger.propagate
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    handlers = [file, terminal]
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()
        logger.setLevel(before[0])
        logger.propagate = before[1]


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn the system's refusal to write into a DataError."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror}): free some space.") from error


@contextmanager
def logging_nowhere() -> Iterator[None]:
    """Have the ``repq`` logger say nothing: another rank says it."""
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


class RunLog:
    """Numbers of a run over time: one JSON object a line, and the same for each of its ``trackers``."""

    def __init__(self, folder: RunFolder, trackers: Sequence[str], quiet: bool) -> None:
        self.path = folder.log_file
        require_no_special(self.path)
        self.show_bar = sys.stderr is not None and sys.stderr.isatty() and not quiet
        self.trackers = Trackers(folder, trackers)
        self._last_line = 0.0

    def state(self) -> dict[str, Any]:
        """What a checkpoint remembers of metrics.jsonl, which is on the disk before it: its bytes and their digest."""
        try:
            with self.path.open("rb") as file:
                os.fsync(file.fileno())
        except FileNotFoundError:
            return {"metrics_bytes": 0, "metrics_sha256": None}
        return {"metrics_bytes": self.path.stat().st_size, "metrics_sha256": file_digest(self.path)}

    def rewind(self, offset: int, step: int, digest: str | None = None) -> None:
        """Forget what was logged after a checkpoint at ``step``, since it will be logged again.

        Of a damaged file the whole lines at its beginning are kept, which is said. ``digest``: of what should be kept.
        """
        with _writing(self.path):
            content = read_regular(self.path)[:offset] if self.path.exists() else b""
            kept = whole_lines(content)
            if len(kept) < offset:
                lines = kept.count(b"\n")
                logger.warning("%s is damaged: its first %d lines are kept, and others are lost.", self.path, lines)
            elif digest is not None and hashlib.sha256(kept).hexdigest() != digest:
                logger.warning("%s is not what was logged: its numbers cannot be relied on.", self.path)
            if kept != content:
                write_atomically(self.path, kept)
            elif self.path.exists():
                os.truncate(self.path, len(kept))
        self.trackers.begin(step)

    def write(self, entry: dict[str, Any]) -> None:
        """Append one object to metrics.jsonl; what is not finite, which JSON cannot say, is left out."""
        with _writing(self.path), self.path.open("a") as file:
            file.write(json.dumps(prune(entry), allow_nan=False) + "\n")

    def last_loss(self, stage: str) -> float | None:
        """The mean loss of the stage's last epoch; None where it has none."""
        lines = self.path.read_bytes().splitlines() if self.path.exists() else []
        entries = [json.loads(line) for line in lines if b'"train_loss"' in line]
        return next((entry["train_loss"] for entry in reversed(entries) if entry["stage"] == stage), None)

    def adopt(self, lines: bytes) -> None:
        """Begin with the log of a stage that another run trained."""
        with _writing(self.path):
            write_atomically(self.path, lines)

    def epoch_line(self, line: str, last: bool) -> None:
        """One epoch in words: always in train.log, and on the terminal unless the last line is only seconds old."""
        now = time.monotonic()
        due = last or self.show_bar or now - self._last_line >= SECONDS_BETWEEN_LINES
        logger.log(logging.INFO if due else logging.DEBUG, line)
        if due:
            self._last_line = now


class NoLog(RunLog):
    """Of a rank that has none."""

    show_bar = False

    def __init__(self) -> None:
        """No file is opened."""
        self.trackers = Trackers(RunFolder(""), [])

    def _nothing(self, *_: object, **__: object) -> None:
        pass

    rewind = write = adopt = epoch_line = _nothing
