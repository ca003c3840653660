"""Files that are either whole or absent."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout

from repq_cli.errors import DataError

POLL_SECONDS = 0.2
OLD_SECONDS = 3600  # no file takes as long to be written
LEFT = re.compile(r"\..+\.[0-9a-f]{12}\.partial", re.DOTALL)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file beside ``path``, which takes its place at the end: readers see the old file or the new one.

    Raises DataError with the reason (full disk, read-only folder); the old file stays.
    """
    temporary = path.parent / f".{path.name}.{uuid4().hex[:12]}.partial"  # each process its own
    _remove_left(path.parent)
    try:
        try:
            yield temporary
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        fix = "free some space or choose another folder" if error.errno == errno.ENOSPC else "choose another folder"
        raise DataError(f"{path} cannot be written ({error.strerror}): {fix}.") from error


@functools.cache
def _remove_left(folder: Path) -> None:
    """Remove what killed processes left of attempts to write here; once is enough."""
    for left in folder.glob(".*.partial"):
        with contextlib.suppress(OSError):
            if LEFT.fullmatch(left.name) and time.time() - left.stat().st_mtime > OLD_SECONDS:
                left.unlink()


def make_folder(folder: Path, fix: str = "choose another folder") -> Path:
    """Make a folder, and those it is in, where there is none yet. Raises DataError with the ``fix``."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"The folder {folder} cannot be made ({error.strerror}): {fix}.") from error
    return folder


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``path`` whole or not at all, flushed to the disk. Raises DataError if that cannot be."""
    with _replacing(path) as temporary, temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def link(source: Path, path: Path) -> None:
    """Make ``path`` a hard link to ``source``, or a copy where the file system has none.

    For files that are replaced and never changed. Raises DataError if it cannot be made.
    """
    with _replacing(path) as temporary:
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


class Taken(Exception):  # noqa: N818
    """Another process holds a lock."""


@contextlib.contextmanager
def locked(path: Path, wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock file ``path``, which the system frees when its holder dies.

    While another process has it, ``wait`` is called now and then and may raise; without ``wait``, Taken is raised.
    DataError if the file cannot be made.
    """
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            with contextlib.suppress(Timeout):
                lock.acquire(timeout=0)
                break
            if wait is None:
                raise Taken(path)
            wait()
            time.sleep(POLL_SECONDS)
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror}): choose another folder.") from error
    try:
        yield
    finally:
        lock.release()


def write_json(path: Path, content: Any) -> None:
    """JSON, indented, with a newline at the end."""
    write_atomically(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
