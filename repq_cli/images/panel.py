"""Pictures next to each other under their names, to be looked at."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from repq_cli.images.files import pixels_of, to_image

CAPTION, GAP = 14, 4  # pixels: a line of text, white between pictures


def side_by_side(pictures: Mapping[str, Tensor]) -> Tensor:
    """``uint8 [3, H + caption, W]`` of RGB pictures ``uint8 [3, h, w]``, in their order, captions above them."""
    height = max(picture.shape[1] for picture in pictures.values())
    width = sum(picture.shape[2] + GAP for picture in pictures.values()) - GAP
    sheet = Image.new("RGB", (width, height + CAPTION), "white")
    draw = ImageDraw.Draw(sheet)
    left = 0
    for name, picture in pictures.items():
        draw.text((left + 1, 1), name, fill="black")
        sheet.paste(to_image(picture), (left, CAPTION))
        left += picture.shape[2] + GAP
    return pixels_of(sheet)


def centre(picture: Tensor, size: int) -> Tensor:
    """The middle ``size x size`` pixels of ``[C, H, W]``, or what there is of them."""
    rows, columns = picture.shape[-2:]
    top, left = max(0, (rows - size) // 2), max(0, (columns - size) // 2)
    return picture[..., top : top + size, left : left + size]


def enlarged(picture: Tensor, factor: int) -> Tensor:
    """Every pixel as ``factor x factor`` ones."""
    return torch.repeat_interleave(torch.repeat_interleave(picture, factor, -2), factor, -1)
