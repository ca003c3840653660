"""Images in files: decoded when they are read, by worker processes, or taken from a cache of decoded ones."""

from __future__ import annotations

import copy
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import features
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from repq_cli.data.base import Images, Marks, fill_of, marks_of
from repq_cli.data.contents import content_hash, file_hashes
from repq_cli.data.decoded import Decoded, fill, opened, tell
from repq_cli.data.identity import names_of
from repq_cli.data.image_cache import ImageCache, Pixels
from repq_cli.data.workers import Workers
from repq_cli.errors import DataError
from repq_cli.images.members import Member
from repq_cli.seeds import derive_seed

FEW = 500  # images that are decoded before worker processes would have started
TASK = 64  # images of a worker's task


class Reader:
    """Reads image files in two steps: what a file always gives, which can be kept, and what a seed makes of it."""

    @property
    def rule(self) -> str:
        """How ``prepare`` reads, in words that differ where its bytes do."""
        raise NotImplementedError

    def prepare(self, path: Path | Member) -> Pixels:
        """``uint8`` with three dimensions, which depends on the file alone. Raises DataError with its name."""
        raise NotImplementedError

    def finish(self, pixels: Pixels, seed: int | None) -> Tensor:
        """``uint8 [C, H, W]`` of what ``prepare`` gave."""
        return torch.from_numpy(pixels)

    def __call__(self, path: Path | Member, seed: int | None = None) -> Tensor:
        """Both."""
        return self.finish(self.prepare(path), seed)


class Files:
    """Images that are decoded when they are read.

    keep: whether a cache on the disk is to hold them, or the indices of those that it is to hold. From its filling on
    they are read from there, with the same bits.
    """

    def __init__(
        self, paths: Sequence[Path | Member], reader: Reader, workers: int, keep: bool | Tensor = False
    ) -> None:
        self.paths, self.reader, self.workers = paths, reader, workers
        chosen = keep if isinstance(keep, Tensor) else torch.arange(len(paths) if keep else 0)
        self.kept: list[int] = chosen.tolist()
        self.rows = {index: row for row, index in enumerate(self.kept)}
        self.decoded: Decoded | None = None
        self._looked = not self.kept
        self._workers: Workers[Tensor] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, index: int, seed: int | None = None) -> Tensor:
        """``uint8 [C, H, W]``; raises DataError."""
        row = None if self.decoded is None else self.rows.get(index)
        pixels = self.reader.prepare(self.paths[index]) if row is None else self.decoded[row]  # type: ignore[index]
        return self.reader.finish(pixels, None if seed is None else derive_seed(seed, index))

    def marks(self, indices: Tensor) -> Marks:
        """Names below the folder of all of them, and hashes of the files."""
        names = names_of(self.paths)
        chosen = indices.tolist()
        return [names[index] for index in chosen], file_hashes([self.paths[index] for index in chosen])

    def read(self, batches: Sequence[Tensor], seed: int | None = None) -> Iterator[Tensor]:
        """The images of each batch of indices, decoded ahead by workers, in order; pinned where a GPU waits."""
        self._look()
        tasks = [[(index, seed) for index in batch.tolist()] for batch in batches]
        if self._workers is None:
            self._workers = Workers(_Images(self), _stacked, self.workers, pin=torch.cuda.is_available())
        return self._workers.worked(tasks)

    def all(self) -> Tensor:
        """Every image, decoded once: ``uint8 [N, C, H, W]``."""
        self._look()
        tasks = [[(index, None) for index in part.tolist()] for part in torch.arange(len(self)).split(TASK)]
        images: Tensor | None = None
        done = 0  # a bar that is not shown does not count
        bar = tqdm(
            total=len(self), desc="decoding", unit="image", leave=False, disable=not sys.stderr.isatty(), delay=2
        )
        with bar:
            for batch in Workers(_Images(self), _stacked, self.workers if len(self) > FEW else 0).worked(tasks):
                images = batch.new_empty(len(self), *batch.shape[1:]) if images is None else images
                images[done : done + len(batch)] = batch
                done += len(batch)
                bar.update(len(batch))
        assert images is not None
        return images

    def fill(self) -> None:
        """Have the cache filled, by this process or by one that is at it already."""
        self._look()
        if not self.kept or self.decoded is not None:
            return
        self._workers = None  # those that are there know of no cache
        cache = self._cache()
        waiting = iter([f"Another process decodes images into {cache.folder}: waiting for it."])
        with cache.held(lambda: tell(*waiting)):
            self.decoded = opened(cache)
            if self.decoded is None:
                folder = os.path.commonpath([self.paths[0].parent, self.paths[-1].parent])
                about = {"from": folder, "rule": self.reader.rule}
                self.decoded = fill(cache, len(self.kept), self._prepared, about)

    def _look(self) -> None:
        """For a cache that is filled already; once."""
        if not self._looked:
            self._looked = True
            self.decoded = opened(self._cache())

    def _cache(self) -> ImageCache:
        codecs = {name: features.version(name) for name in ("jpg", "jpg_2000", "webp", "libtiff", "zlib", "avif")}
        contents = file_hashes([self.paths[index] for index in self.kept])
        return ImageCache(content_hash(json.dumps([self.reader.rule, PIL.__version__, codecs, contents]).encode()))

    def _prepared(self, ranges: Sequence[range]) -> Iterator[list[Pixels]]:
        """What ``prepare`` gives for the kept images of each range of rows."""
        starts = ((part, start) for part in ranges for start in range(0, len(part), TASK))
        tasks = [[self.kept[row] for row in part[start : start + TASK]] for part, start in starts]
        workers = self.workers if sum(map(len, ranges)) > FEW else 0
        found = Workers(_Prepared(self), _packed, workers).worked(tasks)
        for part in ranges:
            images: list[Pixels] = []
            while len(images) < len(part):
                content, shapes = next(found)
                parts = content.split([math.prod(shape) for shape in shapes])
                images += [one.numpy().reshape(shape) for one, shape in zip(parts, shapes, strict=True)]
            yield images


class Subset:
    """Some of the images."""

    def __init__(self, images: Images, indices: Tensor) -> None:
        self.images, self.indices = images, indices

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, batches: Sequence[Tensor], seed: int | None = None) -> Iterator[Tensor]:
        """The images of each batch of indices, in order."""
        return self.images.read([self.indices[batch] for batch in batches], seed)

    def marks(self, indices: Tensor) -> Marks | None:
        """Those of the images that they are some of."""
        return marks_of(self.images, self.indices[indices])

    def fill(self) -> None:
        """Have the cache filled of the images that they are some of."""
        fill_of(self.images)


class _Images(Dataset["Tensor | str"]):
    """Finished images, or what is wrong with them: an exception would arrive wrapped in a worker's traceback."""

    def __init__(self, files: Files) -> None:
        self.files = copy.copy(files)
        self.files._workers = None  # so that they end with the files, and do not hold each other

    def __getitem__(self, item: tuple[int, int | None]) -> Tensor | str:
        try:
            return self.files.image(*item)
        except DataError as error:
            return str(error)


class _Prepared(Dataset["Pixels | str"]):
    """Images as they are kept, or what is wrong with them."""

    def __init__(self, files: Files) -> None:
        self.files = files

    def __getitem__(self, index: int) -> Pixels | str:
        try:
            return self.files.reader.prepare(self.files.paths[index])
        except DataError as error:
            return str(error)


def _stacked(images: list[Tensor | str]) -> Tensor | str:
    """A batch, or the first complaint."""
    sound = [image for image in images if isinstance(image, Tensor)]
    return torch.stack(sound) if len(sound) == len(images) else _complaint(images)


def _packed(images: list[Pixels | str]) -> tuple[Tensor, list[tuple[int, ...]]] | str:
    """The bytes of all, which reach another process as one tensor, and their shapes; or the first complaint."""
    sound = [image for image in images if not isinstance(image, str)]
    if len(sound) < len(images):
        return _complaint(images)
    content = np.concatenate([image.reshape(-1) for image in sound])
    return torch.from_numpy(content), [image.shape for image in sound]


def _complaint(images: Sequence[object]) -> str:
    return next(image for image in images if isinstance(image, str))
