"""What files hold, as hashes that are remembered, so that a million images are read once. Needs no torch.

``outputs/cache/contents.sqlite`` keeps, under a hash of a file's absolute path, the hash of its bytes and a seal over
both that and the file's size, times and inode: an entry that is out of date, or damaged, does not fit its seal. The
inode's time of change is among the times, because no program can set it back. A store that cannot be read or written
costs time and nothing else.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import NamedTuple, TypeVar

from tqdm import tqdm

from repq_cli.errors import DataError
from repq_cli.files import open_regular
from repq_cli.images.members import Member

logger = logging.getLogger("repq")

STORE = Path("outputs/cache/contents.sqlite")
TABLE = "CREATE TABLE IF NOT EXISTS contents (path BLOB PRIMARY KEY, content BLOB, seal BLOB) WITHOUT ROWID"
HASH_BYTES = 8  # enough against accidents, which is all that this is about
THREADS = 8
BATCH = 4096  # files between two commits
SLICE = 64  # files that a thread takes at once
QUESTION = 500  # files that one query asks for; SQLite has a limit
SETTLED_NS = 2_000_000_000  # a younger file may change again without its times telling
FAULTS = (sqlite3.Error, OSError, UnicodeError)  # the last of messages about names that are damaged
LOCK_SECONDS = 10.0  # to wait for other processes

Item = TypeVar("Item")
Result = TypeVar("Result")


def content_hash(content: object) -> str:
    """Of bytes, or of anything that has some, such as an array."""
    return _hash(content).hex()


def file_hashes(paths: Sequence[Path | Member], store: Path = STORE) -> list[str]:
    """``content_hash`` of each file's bytes, read only where the store does not know it.

    Raises DataError, which names the file, where one cannot be read.
    """
    found: list[str] = []
    bar = tqdm(
        total=len(paths),
        desc="reading contents",
        unit="file",
        leave=False,
        disable=not sys.stderr.isatty(),
        delay=2,
    )
    with closing(_Memory(store)) as memory, ThreadPoolExecutor(THREADS) as pool, bar:
        for start in range(0, len(paths), BATCH):
            batch = paths[start : start + BATCH]
            found += [content.hex() for content in _batch(batch, memory, pool)]
            bar.update(len(batch))
    return found


class _State(NamedTuple):
    """A file as the system describes it. ``key``: of its path; ``marks``: size, times, inode."""

    key: bytes
    marks: bytes
    settled: bool

    def seal(self, content: bytes) -> bytes:
        """Fits this state and this content together."""
        return _hash(self.marks + content)


def _batch(paths: Sequence[Path | Member], memory: _Memory, pool: ThreadPoolExecutor) -> list[bytes]:
    states = list(_in_threads(pool, _state, paths))  # before reading: what changes meanwhile will not fit
    known = memory.recall(states)
    unknown = [index for index, state in enumerate(states) if state.key not in known]
    read = dict(zip(unknown, _in_threads(pool, _read, [paths[index] for index in unknown]), strict=True))
    memory.remember([(states[index], content) for index, content in read.items() if states[index].settled])
    return [read[index] if index in read else known[state.key] for index, state in enumerate(states)]


def _in_threads(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Sequence[Item]
) -> Iterator[Result]:
    """``function`` of each item, in order; a task for every file would cost more than a small file."""
    slices = [items[start : start + SLICE] for start in range(0, len(items), SLICE)]
    return (
        result for results in pool.map(lambda part: [function(item) for item in part], slices) for result in results
    )


def _state(path: Path | Member) -> _State:
    absolute = os.path.join(os.getcwd(), str(path))
    try:
        found = os.stat(path.archive if isinstance(path, Member) else absolute)
    except OSError as error:
        raise _unreadable(path, error) from error
    marks = f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"
    if isinstance(path, Member):
        marks += f" {path.start} {path.size}"
    settled = time.time_ns() - found.st_ctime_ns > SETTLED_NS
    return _State(_hash(os.fsencode(absolute), 16), marks.encode(), settled)


def _read(path: Path | Member) -> bytes:
    try:
        with path.open() if isinstance(path, Member) else open_regular(path) as file:
            return _hash(file.read())
    except OSError as error:
        raise _unreadable(path, error) from error


def _is_whole(state: _State | None, content: object, seal: object) -> bool:
    """Whether a row is one that was asked for, and as it was written, also in the kinds of its values."""
    return state is not None and isinstance(content, bytes) and state.seal(content) == seal


def _unreadable(path: Path | Member, error: OSError) -> DataError:
    return DataError(f"The file {path} cannot be read ({error.strerror}): remove or replace it.")


def _hash(content: object, size: int = HASH_BYTES) -> bytes:
    return hashlib.blake2b(content, digest_size=size).digest()  # type: ignore[arg-type]


class _Memory:
    """The store, which many processes may use at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._database: sqlite3.Connection | None = None
        self._writes = True
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, timeout=LOCK_SECONDS)
            self._database.execute(TABLE)
        except FAULTS as error:
            self._give_up(error)

    def recall(self, states: Sequence[_State]) -> dict[bytes, bytes]:
        """The contents of those files that are as they were, by their keys."""
        found: dict[bytes, bytes] = {}
        asked = {state.key: state for state in states}
        keys = list(asked)
        try:
            for start in range(0, len(keys) if self._database else 0, QUESTION):
                part = keys[start : start + QUESTION]
                marks = ",".join("?" * len(part))
                question = f"SELECT path, content, seal FROM contents WHERE path IN ({marks})"  # noqa: S608 - of question marks
                rows = self._database.execute(question, part)  # type: ignore[union-attr]
                found |= {key: content for key, content, seal in rows if _is_whole(asked.get(key), content, seal)}
        except FAULTS as error:
            self._give_up(error)
        return found

    def remember(self, contents: Sequence[tuple[_State, bytes]]) -> None:
        """Keep what was read."""
        if not contents or not self._writes or self._database is None:
            return
        rows = [(state.key, content, state.seal(content)) for state, content in contents]
        try:
            with self._database:
                self._database.executemany("INSERT OR REPLACE INTO contents VALUES (?, ?, ?)", rows)
        except FAULTS as error:
            self._writes = False
            self._say(error)

    def close(self) -> None:
        """Let go of the file."""
        if self._database is not None:
            self._database.close()
            self._database = None

    def _give_up(self, error: Exception) -> None:
        self.close()
        self._say(error)

    def _say(self, error: Exception) -> None:
        _say_unusable(self.path.absolute(), str(error))


@functools.cache
def _say_unusable(path: Path, why: str) -> None:
    """Once, and not for each split of the data."""
    logger.warning("%s cannot be used (%s): files are read again by every run; remove it.", path, why)
