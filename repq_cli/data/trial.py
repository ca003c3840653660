"""Data of a trial: as little of it as two training steps and one batch of every evaluation set take."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from repq_cli.data.base import Batch, Data, Split
from repq_cli.data.image_files import Subset
from repq_cli.data.pictures import Patches, Pictures
from repq_cli.devices import CPU
from repq_cli.images.few import spread

STEPS = 2  # of an epoch
PIXELS = 2**13  # of a batch
PER_FOLDER = 4  # files that are read of a folder or a class
AS_NEEDED = {"cache_mib": 0, "disk_cache": False, "workers": 0}


class Begun:
    """The first batches of a split of somebody's own."""

    def __init__(self, split: Any, images: int) -> None:
        self.split, self.images = split, images

    def __len__(self) -> int:
        return len(self.split)

    def steps(self, batch_size: int) -> int:
        """Full batches of one epoch."""
        return min(STEPS, self.split.steps(batch_size))

    def training_batches(
        self, batch_size: int, seed: int, start: int = 0, device: torch.device = CPU
    ) -> Iterator[Batch]:
        """The first of an epoch."""
        return itertools.islice(self.split.training_batches(batch_size, seed, start, device), STEPS - start)

    def batches(self, batch_size: int, device: torch.device = CPU) -> Iterator[Batch]:
        """The first one."""
        return itertools.islice(self.split.batches(min(batch_size, self.images), device), 1)


def trial_batch(data: Data, asked: int) -> int:
    """Images of a step: few large or more small ones, so that every statistic of a layer is of 8 values or so.

    Networks halve their maps five times; a variance of two values would overflow in a network that knows nothing yet.
    """
    _, height, width = data.info.shape
    return min(asked, max(2, PIXELS // (height * width)))


def trial_of(data: Data, asked: int) -> Data:
    """Images for ``STEPS`` training steps, and a batch to validate and to test with. ``asked``: a batch of the run."""
    batch_size = trial_batch(data, asked)
    train = _some(data.train, STEPS * batch_size)
    tests = {name: _some(split, batch_size) for name, split in data.tests.items()}
    return replace(data, train=train, val=_some(data.val, batch_size), tests=tests)


def as_needed(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of data by which this process decodes images as it needs them, where the data has those."""
    return arguments | {key: value for key, value in AS_NEEDED.items() if key in arguments}


def _some(split: Any, images: int) -> Any:
    """Some images of a split, of the kind that it is."""
    if isinstance(split, Split):
        chosen = torch.tensor(spread(range(len(split)), images))
        return Split(Subset(split.images, chosen), split.labels[chosen], split.info, split.augment)
    if isinstance(split, Pictures):
        return Pictures(split.pairs[:1], split.upscaling)
    if isinstance(split, Patches):
        cut = copy.copy(split)
        cut.patches = images
        return cut
    return Begun(split, images)
