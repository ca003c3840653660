"""Files that are either whole or absent."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from repq_cli.errors import DataError


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file beside ``path``, which takes its place at the end: readers see the old file or the new one.

    Raises DataError with the reason (full disk, read-only folder); the old file stays.
    """
    temporary = path.with_name(f".{path.name}.partial")  # one name: what a killed process left is written over
    try:
        try:
            yield temporary
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise DataError(
            f"{path} cannot be written ({error.strerror}): free some space or choose another folder."
        ) from error


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


def write_json(path: Path, content: Any) -> None:
    """JSON, indented, with a newline at the end."""
    write_atomically(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
