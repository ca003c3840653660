"""Filling a cache of decoded images, and reading it: the bytes that decoding gives, without decoding."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from repq_cli.data.image_cache import ImageCache, Pixels
from repq_cli.errors import DataError
from repq_cli.files import make_folder
from repq_cli.text import file_size

FILE_BYTES = 64 << 20  # enough for the disk to be fast, and little to lose with a process that is killed
SAMPLE = 64  # images that tell how large all of them are


class Decoded:
    """The images of a whole cache, in order. Its files are mapped: pages are read when they are looked at, and shared.

    Pruning may remove the files meanwhile; what is mapped stays readable.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)
        self._map()

    def __getitem__(self, row: int) -> Pixels:
        """``uint8`` of the shape that was stored."""
        number, place = divmod(row, self._each)
        content, shapes, starts = self._parts[number]
        return content[starts[place] : starts[place + 1]].reshape(shapes[place])

    def _map(self) -> None:
        self._parts = [_mapped(path) for path in self.files]
        self._each = len(self._parts[0][1])

    def __getstate__(self) -> list[Path]:
        """A worker process that is not forked maps the files itself."""
        return self.files

    def __setstate__(self, files: list[Path]) -> None:
        self.files = files
        self._map()


def _mapped(path: Path) -> tuple[Pixels, Any, Any]:
    """The bytes of a file, the shapes of its images, and where each starts."""
    # torch's mapping needs no open file, of which a process may have a thousand; copy-on-write, and never written.
    content = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8).numpy()
    count = int(content[:4].view(np.int32)[0])
    head = 4 + 12 * count
    shapes = content[4:head].view(np.int32).reshape(count, 3)
    starts = head + np.concatenate([[0], shapes.astype(np.int64).prod(1).cumsum()])
    return content, shapes, starts


def opened(cache: ImageCache) -> Decoded | None:
    """The images of a cache that is whole."""
    files = cache.whole()
    return None if files is None else Decoded(files)


def fill(
    cache: ImageCache,
    count: int,
    prepared: Callable[[Sequence[range]], Iterator[list[Pixels]]],
    about: dict[str, Any],
) -> Decoded:
    """Put ``count`` images into a cache, which is held; what a process that died left of them is kept.

    prepared: the images of each range, in order. about: what becomes of it, with ``from``, for the message.
    Raises DataError, before it begins, where the disk has no room for them.
    """
    for half in make_folder(cache.folder).glob(".*.partial"):  # nobody else writes here
        half.unlink()
    step = -(-count // SAMPLE)
    sample = [image.nbytes for (image,) in prepared([range(row, row + 1) for row in range(0, count, step)])]
    mean = sum(sample) / len(sample)
    each = max(1, int(FILE_BYTES / mean))
    ranges = [range(start, min(start + each, count)) for start in range(0, count, each)]
    sound = cache.sound()
    cache.clear(sound.values())
    there = {
        number: path for number, path in sound.items() if number < len(ranges) and _holds(path) == len(ranges[number])
    }
    missing = [number for number in range(len(ranges)) if number not in there]
    left = sum(len(ranges[number]) for number in missing)
    _require_room(cache, about["from"], left, left * mean)
    bar = tqdm(total=count, initial=count - left, unit="image", leave=False, disable=not sys.stderr.isatty(), delay=2)
    bar.set_description(f"decoding {about['from']}")
    with bar:
        images = prepared([ranges[number] for number in missing])
        for number, found in zip(missing, images, strict=True):
            there[number] = cache.write(number, found)
            bar.update(len(found))
    files = [there[number] for number in range(len(ranges))]
    cache.finish(files, about | {"images": count})
    return Decoded(files)


def _holds(path: Path) -> int:
    """How many images a file holds."""
    return len(_mapped(path)[1])


def _require_room(cache: ImageCache, source: str, count: int, size: float) -> None:
    """Say what is about to be written; DataError where there is no room for it."""
    free = shutil.disk_usage(cache.folder).free
    if size > free:
        raise DataError(
            f"The {count:,} decoded images of {source} need {file_size(size)} in {cache.folder}, where "
            f"{file_size(free)} are free: free some space, or use data.disk_cache=false."
        )
    if count:
        tell(
            f"Decoding {count:,} images of {source} into {cache.folder}, once for all runs: {file_size(size)} of the "
            f"{file_size(free)} that are free."
        )


def tell(*sentences: str) -> None:
    """Say what takes long, before there is a log."""
    for sentence in sentences:
        tqdm.write(sentence, file=sys.stderr)
