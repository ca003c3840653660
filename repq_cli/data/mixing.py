"""Augmentations that mix images of a batch with their labels, and those of torchvision that draw an operation an image.

torchvision draws from torch's global generator: it gets a state that the epoch's seed and the step decide, so that a
run that goes on in the middle of an epoch sees the same images, and its own state back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import torch
from torch import Tensor

from repq_cli.bounds import Range

Magnitude = Annotated[int, Range(0, 30)]
Alpha = Annotated[float, Range(0)]


class RandAugment:
    """Two operations of 14 for each image of ``uint8 [B, C, H, W]``, of 0..30 in strength (arXiv 1909.13719)."""

    def __init__(self, magnitude: int) -> None:
        from torchvision.transforms import v2  # a second of a start, for those who ask for it

        self.operations = v2.RandAugment(num_ops=2, magnitude=magnitude)

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        with drawing_from(generator):
            return torch.stack([self.operations(image) for image in images])


class Mixing:
    """Each batch mixed with itself in another order, by mixup or by CutMix; where both are asked for, by one of them.

    mixup: ``x <- l x + (1 - l) x'`` and its labels' probabilities alike, ``l ~ Beta(mixup, mixup)`` (arXiv 1710.09412).
    cutmix: a box of ``1 - l`` of the area comes from the other image (arXiv 1905.04899).
    """

    def __init__(self, classes: int, mixup: float = 0.0, cutmix: float = 0.0) -> None:
        from torchvision.transforms import v2

        kinds = ((v2.MixUp, mixup), (v2.CutMix, cutmix))
        self.kinds = [kind(alpha=alpha, num_classes=classes) for kind, alpha in kinds if alpha]

    def __call__(self, x: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images ``[B, C, H, W]`` and labels ``[B]`` to images and probabilities ``[B, classes]``."""
        with drawing_from(generator):
            chosen = self.kinds[int(torch.randint(len(self.kinds), ()))]
            mixed, probabilities = chosen(x, labels)
        return mixed, probabilities


def mixing(classes: int, mixup: float, cutmix: float) -> Mixing | None:
    """What mixes, if anything is asked to."""
    return Mixing(classes, mixup, cutmix) if mixup or cutmix else None


@contextmanager
def drawing_from(generator: torch.Generator) -> Iterator[None]:
    """Inside, torch's global generator of the CPU draws what ``generator`` seeds."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        yield
