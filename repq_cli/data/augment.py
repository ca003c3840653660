"""Augmentations of image batches ``uint8 [B, C, H, W]``, drawn per image from a generator.

own: ``(count, indices)`` where the images are those of a batch of ``count``: what is drawn for all of it, whoever has
the others, and these take their own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from repq_cli.data.mixing import RandAugment

Own = tuple[int, Tensor]


def _drawn_for(images: Tensor, own: Own | None) -> tuple[int, Tensor | slice]:
    return (len(images), slice(None)) if own is None else own


def shift(images: Tensor, generator: torch.Generator, pixels: int, own: Own | None = None) -> Tensor:
    """Move every image by its own whole number of pixels, up to ``pixels`` each way; zeros come in at the border."""
    if pixels == 0:
        return images
    batch, channels, height, width = images.shape
    padded = F.pad(images, (pixels,) * 4).contiguous()
    count, chosen = _drawn_for(images, own)
    top, left = torch.randint(0, 2 * pixels + 1, (2, count), generator=generator)[:, chosen].to(images.device)
    # Whole rows are copied, each from where it starts in the padded images: a gather by pixel takes ten times as long.
    tall, wide = padded.shape[2:]
    plane = torch.arange(batch * channels, device=images.device).view(batch, channels, 1)
    row = plane * tall + top.view(-1, 1, 1) + torch.arange(height, device=images.device)
    starts = row * wide + left.view(-1, 1, 1)
    windows = padded.as_strided((padded.numel() - width + 1, width), (1, 1))
    return windows.index_select(0, starts.flatten()).view(images.shape)


def flip(images: Tensor, generator: torch.Generator, own: Own | None = None) -> Tensor:
    """Mirror every image left to right with probability one half."""
    count, chosen = _drawn_for(images, own)
    mirrored = (torch.rand(count, generator=generator) < 0.5)[chosen].nonzero().flatten().to(images.device)
    return images.index_copy(0, mirrored, images.index_select(0, mirrored).flip(3))


class Augmentation:
    """Shifts (``crop`` pixels of padding, as in the CIFAR recipes), mirror images, RandAugment (of 0: none)."""

    def __init__(self, crop: int = 0, mirror: bool = False, randaugment: int = 0) -> None:
        self.crop, self.mirror = crop, mirror
        self.rest = RandAugment(randaugment) if randaugment else None

    def __call__(self, images: Tensor, generator: torch.Generator, own: Own | None = None) -> Tensor:
        images = shift(images, generator, self.crop, own)
        images = flip(images, generator, own) if self.mirror else images
        return images if self.rest is None else self.rest(images, generator)

    @property
    def knows_parts(self) -> bool:
        """Whether what is drawn for an image does not depend on how many others are at hand."""
        return self.rest is None
