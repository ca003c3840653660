"""Pixels of image files as tensors, and back."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from repq_cli.files import write_atomically
from repq_cli.images.decode import MAX_PIXELS, open_image


def pixels_of(image: Image.Image) -> Tensor:
    """``uint8 [C, H, W]``."""
    return channels_first(np.array(image))


def channels_first(pixels: npt.NDArray[np.uint8]) -> Tensor:
    """``uint8 [C, H, W]``, contiguous, of an array ``[H, W]`` or ``[H, W, C]``."""
    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(planes))  # numpy turns bytes around in half of torch's time


def read_rgb(path: Path, max_pixels: int = MAX_PIXELS) -> Tensor:
    """``uint8 [3, H, W]`` of any image: grey ones get three equal channels, transparency is left out."""
    return pixels_of(open_image(path, "RGB", max_pixels))


def to_image(pixels: Tensor) -> Image.Image:
    """A Pillow image of ``uint8 [C, H, W]`` with 1 to 4 channels: grey, grey with alpha, RGB, RGB with alpha."""
    array = pixels.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def write_png(path: Path, pixels: Tensor) -> None:
    """Write ``uint8 [C, H, W]`` as a PNG, whole or not at all. Raises DataError if that cannot be."""
    buffer = io.BytesIO()
    to_image(pixels).save(buffer, "PNG")
    write_atomically(path, buffer.getvalue())
