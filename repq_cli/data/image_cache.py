"""Decoded images kept on the disk for other runs. Needs no torch.

``outputs/cache/images/KEY/`` holds the images in files of some 64 MB, each named ``NUMBER-HASH.u8`` after its content,
and, written last, ``about.json``. The key is a hash of the images' files and of how they are decoded, so that nothing
in here is ever out of date. Files are written whole or not at all: who goes on after a killed process keeps its files.

A file is ``int32 [1 + 3 n]``, the number ``n`` of its images and the shape of each, and then their bytes. All files of
a folder but the last hold the same number of images.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from repq_cli.data.contents import content_hash, file_hashes
from repq_cli.files import open_regular, write_atomically
from repq_cli.kept import Kept, places

logger = logging.getLogger("repq")

ROOT = Path("outputs/cache/images")
NAME = re.compile(r"(\d+)-([0-9a-f]{16})\.u8")

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ImageCache(Kept):
    """The place of the decoded images of one split, which may be empty or half full."""

    root: Path = ROOT
    one: ClassVar[str] = "set of decoded images"
    many: ClassVar[str] = "sets of decoded images"
    done_to: ClassVar[str] = "filled"

    def is_sound(self, about: dict[str, Any]) -> bool:
        """Whether it names the files, and says what the images are."""
        names = about.get("files")
        words = all(isinstance(about.get(key), str) for key in ("from", "rule")) and isinstance(
            about.get("images"), int
        )
        return words and isinstance(names, list) and all(isinstance(name, str) for name in names)

    def files(self) -> Iterable[Path]:
        """Those with images."""
        return sorted(path for path in self.folder.glob("*") if NAME.fullmatch(path.name))

    def whole(self) -> list[Path] | None:
        """The files in order, if all are there and hold what their names say.

        Each is read for it once, and not again while it stays as it is.
        """
        about = self.about()
        if about is None:
            return None
        sound = self.sound()
        files = [self.folder / name for name in about["files"]]
        if not set(files) <= set(sound.values()):
            logger.warning("%s is damaged: its images are decoded again.", self.folder)
            return None
        self.touch()
        return files

    def sound(self) -> dict[int, Path]:
        """The files that hold what their names say, by their numbers."""
        files = [path for path in self.files() if _has_its_size(path)]
        parts = (path.stem.split("-") for path in files)
        found = zip(files, parts, file_hashes(files), strict=True)
        return {int(number): path for path, (number, named), content in found if named == content}

    def clear(self, sound: Iterable[Path]) -> None:
        """Remove what stands in the place of files and is none of those that are ``sound``, if it is removed easily."""
        for path in set(self.files()) - set(sound):
            with contextlib.suppress(OSError):
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()

    def write(self, number: int, images: Sequence[Pixels]) -> Path:
        """Keep some images as the file of a number. Raises DataError where the disk is full."""
        shapes = np.array([len(images), *(size for image in images for size in image.shape)], np.int32)
        content = b"".join([shapes.tobytes(), *(image.tobytes() for image in images)])
        path = self.folder / f"{number:06d}-{content_hash(content)}.u8"
        write_atomically(path, content)
        return path

    def finish(self, files: Sequence[Path], about: dict[str, Any]) -> None:
        """All images are in ``files``: others, of a process that died, go."""
        self.clear(files)
        self.describe(about | {"files": [path.name for path in files]})


def _has_its_size(path: Path) -> bool:
    """Whether it is a file, and as long as it says itself: what is not need not be read."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            count = int.from_bytes(file.read(4), "little")
            shapes = np.frombuffer(file.read(min(12 * count, size)), np.int32).reshape(-1, 3).astype(np.int64)
    except (OSError, ValueError):  # a folder, a pipe, or half a file
        return False
    return len(shapes) == count and size == 4 + 12 * count + int(shapes.prod(1).sum())


def stored(root: Path = ROOT) -> list[ImageCache]:
    """Every place that holds something, finished or not."""
    return places(root, ImageCache)
