"""Augmentations of image batches ``uint8 [B, C, H, W]``, drawn per image from a generator."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def shift(images: Tensor, generator: torch.Generator, pixels: int) -> Tensor:
    """Move every image by its own whole number of pixels, up to ``pixels`` each way; zeros come in at the border."""
    if pixels == 0:
        return images
    batch, channels, height, width = images.shape
    padded = F.pad(images, (pixels,) * 4)
    offsets = torch.randint(0, 2 * pixels + 1, (2, batch), generator=generator)
    rows = (offsets[0].view(-1, 1) + torch.arange(height)).view(batch, 1, height, 1)
    columns = (offsets[1].view(-1, 1) + torch.arange(width)).view(batch, 1, 1, width)
    image = torch.arange(batch).view(-1, 1, 1, 1)
    return padded[image, torch.arange(channels).view(1, -1, 1, 1), rows, columns]


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror every image left to right with probability one half."""
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)


class Augmentation:
    """Shifts (``crop`` pixels of padding, as in the CIFAR recipes) and mirror images."""

    def __init__(self, crop: int = 0, mirror: bool = False) -> None:
        self.crop, self.mirror = crop, mirror

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        images = shift(images, generator, self.crop)
        return flip(images, generator) if self.mirror else images
