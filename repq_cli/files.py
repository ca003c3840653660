"""Files that are either whole or absent, also after a power cut, and reading of those that others may have damaged."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import platform
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from filelock import FileLock, Timeout

from repq_cli.errors import DataError

POLL_SECONDS = 0.2
OLD_SECONDS = 3600  # no file takes as long to be written
LEFT = re.compile(r"(\..+\.|unproven-)(([0-9a-f]{8})-([0-9]+)-)?[0-9a-f]{12}(\.partial)?", re.DOTALL)
UNPROVEN = "unproven-"
# Of the system's refusals those that say nothing of a file: it is no damaged one, and nothing takes its place.
PASSING = {errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ESTALE}
LARGEST = 1 << 28  # bytes: no file of settings or numbers is that large
DEEPEST = 100  # of lists in lists, and of objects in objects


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file beside ``path``, which takes its place at the end: readers see the old file or the new one.

    Raises DataError with the reason (full disk, read-only folder); the old file stays.
    """
    temporary = path.parent / f".{path.name}.{own_name()}.partial"  # each process its own
    _remove_left(path.parent)
    try:
        try:
            yield temporary
            move(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror}): {way_out(error)}.") from error


def way_out(error: OSError) -> str:
    """What helps where something could not be written."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return "free some space or choose another folder"
        case errno.EMFILE | errno.ENFILE:
            return "let more files be open at once (ulimit -n)"
        case errno.EISDIR:
            return "it is a folder, name a file in it"
        case _:
            return "choose another folder"


def move(source: Path, path: Path) -> None:
    """``source``, whose content is on the disk, takes the place of ``path``, and that is on the disk as well."""
    os.replace(source, path)
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    """Let the names in a folder reach the disk, where its file system can be asked for that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@functools.cache
def _system() -> str:
    """Of processes that can see each other: one machine since it was started, and one container of it."""
    marks = [platform.node()]
    with contextlib.suppress(OSError):
        marks += [Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")]
    return hashlib.sha256("\0".join(marks).encode()).hexdigest()[:8]


def own_name() -> str:
    """A part of a name that no other process gives, and by which others see whether this one still lives."""
    return f"{_system()}-{os.getpid()}-{uuid4().hex[:12]}"


def is_dead(name: str) -> bool | None:
    """Whether the process is gone that gave itself this ``own_name``; None where that cannot be seen from here."""
    system, _, rest = name.partition("-")
    if system != _system():
        return None
    try:
        os.kill(int(rest.partition("-")[0]), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError, ValueError):
        return None
    return False


def _is_left(path: Path) -> bool:
    """Whether a file or folder of work in progress is that of a process which is gone."""
    named = LEFT.fullmatch(path.name)
    if named is None or not (named[1] == UNPROVEN or named[5]):
        return False
    dead = None if named[2] is None else is_dead(named[2])
    if dead is not None:
        return dead
    try:
        return time.time() - path.lstat().st_mtime > OLD_SECONDS
    except OSError:
        return False


@functools.cache
def _remove_left(folder: Path) -> None:
    """Remove what killed processes left of attempts to write here; once is enough."""
    for left in folder.glob(".*.partial"):
        if _is_left(left):
            with contextlib.suppress(OSError):
                left.unlink()


@contextlib.contextmanager
def unproven_in(folder: Path, fix: str | None = None) -> Iterator[Path]:
    """A folder in ``folder`` for what is not proven yet, gone afterwards; those of dead processes are gone before.

    fix: as ``make_folder``'s.
    """
    for left in make_folder(folder, fix).glob(f"{UNPROVEN}*"):
        if _is_left(left):
            shutil.rmtree(left, ignore_errors=True)
    unproven = folder / f"{UNPROVEN}{own_name()}"
    try:
        yield make_folder(unproven, fix)  # inside, since a signal may come at once
    finally:
        shutil.rmtree(unproven, ignore_errors=True)


def make_folder(folder: Path, fix: str | None = None) -> Path:
    """Make a folder, and those it is in, where there is none yet. Raises DataError with ``fix``, else ``way_out``."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"The folder {folder} cannot be made ({error.strerror}): {fix or way_out(error)}.") from error
    for place in missing:
        _flush_folder(place.parent)
    return folder


def write_atomically(path: Path, *parts: bytes | memoryview) -> None:
    """Write ``path`` whole or not at all, flushed to the disk. Raises DataError if that cannot be."""
    with _replacing(path) as temporary, temporary.open("wb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())


def open_regular(path: Path, largest: int | None = None) -> BinaryIO:
    """Open a file to read. OSError for a folder, a pipe or a device, which are not opened, and for one that is larger.

    What somebody put in a file's place must neither block its reader nor fill the memory.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    if largest is not None and found.st_size > largest:
        raise OSError(errno.EFBIG, f"it has {found.st_size:,} bytes, far more than any that repq writes", str(path))
    return path.open("rb")


def read_regular(path: Path, largest: int = LARGEST) -> bytes:
    """The bytes of a file. OSError as ``open_regular``."""
    with open_regular(path, largest) as file:
        return file.read()


def parsed_json(content: bytes) -> dict[str, Any]:
    """The JSON object that bytes hold. Raises ValueError for whatever else they are."""
    try:
        tree = json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(tree, dict):
        raise ValueError("it holds no JSON object")
    if content.count(b"[") + content.count(b"{") > DEEPEST:
        require_modest(tree)
    return tree


def require_modest(tree: Any, most: int | None = None) -> None:
    """Raise ValueError where lists and objects are nested deeper than ``DEEPEST``, or are more than ``most``.

    Whoever goes through them afterwards has no stack to lose, and, of YAML, no time: a few of its lines may stand for a
    billion, or for themselves.
    """
    level, found = [tree], 0
    for _ in range(DEEPEST):
        inner = []
        for item in level:
            for value in item.values() if isinstance(item, dict) else item if isinstance(item, list) else ():
                if isinstance(value, dict | list):
                    inner.append(value)
                    found += 1
                    if most is not None and found > most:
                        raise ValueError(f"it stands for more than {most:,} lists and objects")
        if not inner:
            return
        level = inner
    raise ValueError("it is nested too deeply")


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
        raise DataError(f"{path} cannot be written ({error.strerror}): {way_out(error)}.") from error
    try:
        yield
    finally:
        lock.release()


def write_json(path: Path, content: Any) -> None:
    """JSON, indented, with a newline at the end."""
    write_atomically(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
