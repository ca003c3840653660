"""Which files of a folder are images. Links are followed, and what is passed over is said."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from repq_cli.errors import DataError

logger = logging.getLogger("repq")

EXTENSIONS = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".gif", ".webp", ".avif", ".jp2"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
)
NAMED = 5  # names in a message


def is_image(path: Path) -> bool:
    """By its ending, in capitals or not."""
    return path.suffix.lower() in EXTENSIONS


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What a folder holds, in order, but for hidden things, which desktops and editors leave.

    Raises DataError for a folder that cannot be read and for links that lead nowhere.
    """
    try:
        with os.scandir(folder) as found:
            visible = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}.") from error
    dangling = [entry.path for entry in visible if entry.is_symlink() and not os.path.exists(entry.path)]
    if dangling:
        more = f" (and {len(dangling) - 1} more beside it)" if len(dangling) > 1 else ""
        raise DataError(
            f"{dangling[0]} is a link to {os.readlink(dangling[0])}, which is not there{more}: mend or remove it."
        )
    return visible


def files_below(top: Path) -> tuple[dict[str, Path], list[Path]]:
    """The files in a folder and in those below it by where they really are, in order, and further names of the same.

    Links are followed. A folder is entered once, however many lead to it, so that loops end; what is no link counts
    before what is one.
    """
    entered: set[str] = set()
    files: list[tuple[bool, Path, str]] = []  # whether it is a link, its name, where it really is
    waiting: list[str] = [str(top)]
    linked: list[str] = []
    while waiting or linked:
        folder = waiting.pop() if waiting else linked.pop(0)
        place = os.path.realpath(folder)
        if place in entered:
            continue
        entered.add(place)
        for entry in entries(Path(folder)):
            if entry.is_dir():
                (linked if entry.is_symlink() else waiting).append(entry.path)
            elif entry.is_file():  # not a pipe or a socket
                real = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(place, entry.name)
                files.append((entry.is_symlink(), Path(entry.path), real))
    names: dict[str, Path] = {}
    again = []
    for _, path, real in sorted(files):
        if names.setdefault(real, path) != path:
            again.append(path)
    return dict(sorted(names.items(), key=lambda item: item[1])), again


def list_folder(folder: Path) -> list[Path]:
    """The image files of a folder and of those below it, in a fixed order; DataError if there are none."""
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder: name one that holds images.")
    names, again = files_below(folder)
    files = list(names.values())
    found = [path for path in files if is_image(path)]
    if not found:
        raise DataError(
            f"{folder} holds no images{but_others(files)}: name a folder that holds {', '.join(EXTENSIONS)}."
        )
    say_passed_over(folder, files, again)
    return found


def say_passed_over(folder: Path, files: Iterable[Path], again: Iterable[Path]) -> None:
    """Which of the files below ``folder`` are not read: those of other endings, and further names of the same."""
    others = [path for path in files if not is_image(path)]
    if others:
        logger.warning(
            "Below %s, files of other endings than those of images are passed over: %s.", folder, _by_ending(others)
        )
    repeated = [path for path in again if is_image(path)]
    if repeated:
        logger.warning("Below %s, images that are further links to others count once: %s.", folder, some(repeated))


def some(names: Iterable[object]) -> str:
    """A few of them, and how many more.

    >>> some(range(7))
    '0, 1, 2, 3, 4 and 2 more'
    """
    found = [str(name) for name in names]
    return ", ".join(found[:NAMED]) + (f" and {len(found) - NAMED} more" if len(found) > NAMED else "")


def on_lines(sentences: list[str]) -> str:
    """The first few, each on a line of its own, and how many more."""
    more = [f"and {len(sentences) - NAMED} more"] if len(sentences) > NAMED else []
    return "".join(f"\n  {line}" for line in [*sentences[:NAMED], *more])


def but_others(files: Iterable[Path]) -> str:
    """What there is instead of images, for the end of a clause."""
    counts = _by_ending(files)
    return f", but other files ({counts})" if counts else ""


def _by_ending(files: Iterable[Path]) -> str:
    """How many files have which ending.

    >>> _by_ending(map(Path, ["a.heic", "b.heic", "LABELS"]))
    '2 of .heic, 1 without one'
    """
    counts = Counter(path.suffix.lower() for path in files)
    return some(f"{count} of {ending}" if ending else f"{count} without one" for ending, count in counts.most_common())
