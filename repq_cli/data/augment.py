"""Augmentations of image batches ``uint8 [B, C, H, W]``, drawn per image from a generator."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from repq_cli.data.mixing import RandAugment


def shift(images: Tensor, generator: torch.Generator, pixels: int) -> Tensor:
    """Move every image by its own whole number of pixels, up to ``pixels`` each way; zeros come in at the border."""
    if pixels == 0:
        return images
    batch, channels, height, width = images.shape
    padded = F.pad(images, (pixels,) * 4).contiguous()
    top, left = torch.randint(0, 2 * pixels + 1, (2, batch), generator=generator).to(images.device)
    # Whole rows are copied, each from where it starts in the padded images: a gather by pixel takes ten times as long.
    tall, wide = padded.shape[2:]
    plane = torch.arange(batch * channels, device=images.device).view(batch, channels, 1)
    row = plane * tall + top.view(-1, 1, 1) + torch.arange(height, device=images.device)
    starts = row * wide + left.view(-1, 1, 1)
    windows = padded.as_strided((padded.numel() - width + 1, width), (1, 1))
    return windows.index_select(0, starts.flatten()).view(images.shape)


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror every image left to right with probability one half."""
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    chosen = mirrored.nonzero().flatten().to(images.device)
    return images.index_copy(0, chosen, images.index_select(0, chosen).flip(3))


class Augmentation:
    """Shifts (``crop`` pixels of padding, as in the CIFAR recipes), mirror images, RandAugment (of 0: none)."""

    def __init__(self, crop: int = 0, mirror: bool = False, randaugment: int = 0) -> None:
        self.crop, self.mirror = crop, mirror
        self.rest = RandAugment(randaugment) if randaugment else None

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        images = shift(images, generator, self.crop)
        images = flip(images, generator) if self.mirror else images
        return images if self.rest is None else self.rest(images, generator)
