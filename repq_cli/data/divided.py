"""The part of each batch that one of several processes reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import torch

from repq_cli.data.augment import Augmentation
from repq_cli.data.base import Batch, Split
from repq_cli.devices import CPU
from repq_cli.parts import Part


@runtime_checkable
class Divisible(Protocol):
    """What can read a part of each batch and leave the others' alone."""

    def divided(self, part: Part) -> Any:
        """The same, whose batches are those of ``part``."""
        ...


class Divided:
    """A part of the batches of a split that knows of none: all are read, and the others' images dropped."""

    def __init__(self, split: Any, part: Part) -> None:
        self.split, self.part = split, part

    def __len__(self) -> int:
        return len(self.split)

    def steps(self, batch_size: int) -> int:
        """Full batches of one epoch, as long as the whole's."""
        return int(self.split.steps(batch_size))

    def training_batches(
        self, batch_size: int, seed: int, start: int = 0, device: torch.device = CPU
    ) -> Iterator[Batch]:
        """The part of each batch."""
        for x, targets in self.split.training_batches(batch_size, seed, start, device):
            chosen = self.part.indices(len(x)).to(x.device)
            yield x[chosen], targets[chosen]

    def batches(self, batch_size: int, device: torch.device = CPU) -> Iterator[Batch]:
        """Every ``ranks``-th image of all, in order."""
        before = 0
        for x, targets in self.split.batches(batch_size, device):
            first = (self.part.rank - before) % self.part.ranks
            before += len(x)
            if first < len(x):
                yield x[first :: self.part.ranks], targets[first :: self.part.ranks]


def divided(split: Any, part: Part) -> Any:
    """``split``, of whose batches only ``part`` is given."""
    if part.is_whole:
        return split
    return split.divided(part) if isinstance(split, Divisible) and not _is_foreign(split) else Divided(split, part)


def _is_foreign(split: object) -> bool:
    """Whether it is a ``Split`` whose images depend on the others of their batch: mixed, or drawn for one by one.

    So do those of a user's own batches and augmentations, for all that is known.
    """
    if not isinstance(split, Split):
        return False
    draws = split.augment is not None and not (isinstance(split.augment, Augmentation) and split.augment.knows_parts)
    own = (type(split).training_batches, type(split).batches) != (Split.training_batches, Split.batches)
    return draws or own or split.mix is not None
