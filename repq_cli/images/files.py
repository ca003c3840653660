"""Image files: which they are, and their pixels as tensors."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from repq_cli.errors import DataError
from repq_cli.files import write_atomically

UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def is_image(path: Path) -> bool:
    """By its ending; hidden files are left by desktops and editors."""
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")


def list_folder(folder: Path) -> list[Path]:
    """The image files of a folder and of those below it, in a fixed order; DataError if there are none."""
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder: name one that holds images.")
    visible = (path for path in folder.glob("**/*") if not _hidden(path.relative_to(folder)))
    found = sorted(path for path in visible if is_image(path))
    if not found:
        raise DataError(f"{folder} holds no images ({', '.join(EXTENSIONS)}): name a folder that does.")
    return found


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def open_image(path: Path, mode: str) -> Image.Image:
    """The decoded image in Pillow's ``mode``; DataError with its name if it is broken."""
    try:
        with Image.open(path) as opened:
            return _eight_bit(opened).convert(mode)
    except UNREADABLE as error:
        raise DataError(f"The image {path} cannot be decoded: remove or replace it.") from error


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


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit grey images scaled to 8 bit, where Pillow's own conversion would clip them to white."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image) / 257).round().clip(0, 255).astype(np.uint8))
