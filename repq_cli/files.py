"""Files that are either whole or absent."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from repq_cli.errors import DataError


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside ``path``, flush to disk, then rename: readers see the old file or the new one.

    Raises DataError with the reason (full disk, read-only folder); the old file stays.
    """
    temporary = path.with_name(f".{path.name}.partial")  # one name: what a killed process left is written over
    try:
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise DataError(
            f"{path} cannot be written ({error.strerror}): free some space or choose another folder."
        ) from error


def write_json(path: Path, content: Any) -> None:
    """JSON, indented, with a newline at the end."""
    write_atomically(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
