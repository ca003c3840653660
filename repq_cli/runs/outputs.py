"""Where commands write by default, in folders that no two of them share."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from repq_cli.errors import DataError

OUTPUTS = Path("outputs")


def reserve(
    parent: Path,
    name: str,
    option: str = "hydra.run.dir=DIR",
    ending: str = "",
    make: Callable[[Path], None] = Path.mkdir,
) -> Path:
    """Make ``parent/TIME-name``, or ``…-2``, ``…-3``, … where that is taken; making it is what reserves it.

    option: what names another place on the command line. make: how, a folder by default.
    """
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for suffix in ("", *(f"-{number}" for number in range(2, 10_000))):
            folder = parent / f"{'-'.join(filter(None, (stamp, name)))}{suffix}{ending}"
            try:
                make(folder)
            except FileExistsError:
                continue
            return folder
    except OSError as error:
        raise DataError(
            f"A folder below {parent.absolute()} cannot be made ({error.strerror}): "
            f"run repq elsewhere, or name a folder with {option}."
        ) from error
    raise AssertionError("ten thousand runs in one second")
