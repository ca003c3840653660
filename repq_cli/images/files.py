"""Pixels of image files as tensors, and back."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from repq_cli.files import write_atomically
from repq_cli.images.decode import open_image


def pixels_of(image: Image.Image) -> Tensor:
    """``uint8 [C, H, W]``."""
    pixels = torch.from_numpy(np.array(image))
    return pixels.unsqueeze(0) if pixels.dim() == 2 else pixels.permute(2, 0, 1)


def read_rgb(path: Path) -> Tensor:
    """``uint8 [3, H, W]`` of any image: grey ones get three equal channels, transparency is left out."""
    return pixels_of(open_image(path, "RGB")).contiguous()


def to_image(pixels: Tensor) -> Image.Image:
    """A Pillow image of ``uint8 [C, H, W]`` with 1 to 4 channels: grey, grey with alpha, RGB, RGB with alpha."""
    array = pixels.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def write_png(path: Path, pixels: Tensor) -> None:
    """Write ``uint8 [C, H, W]`` as a PNG, whole or not at all. Raises DataError if that cannot be."""
    buffer = io.BytesIO()
    to_image(pixels).save(buffer, "PNG")
    write_atomically(path, buffer.getvalue())
