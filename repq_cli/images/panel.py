"""Pictures next to each other under their names, to be looked at."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from repq_cli.images.files import pixels_of, to_image

CAPTION, GAP, ROW = 14, 4, 3  # pixels: a line of text, white between pictures; pictures beside each other


def side_by_side(pictures: Mapping[str, Tensor]) -> Tensor:
    """``uint8 [3, H, W]`` of RGB pictures ``uint8 [3, h, w]``, in rows of three, captions above them."""
    height = max(picture.shape[1] for picture in pictures.values()) + CAPTION
    named = list(pictures.items())
    rows = [named[start : start + ROW] for start in range(0, len(named), ROW)]
    width = max(sum(picture.shape[2] + GAP for _, picture in row) for row in rows) - GAP
    sheet = Image.new("RGB", (width, height * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, row in enumerate(rows):
        left, top = 0, number * height
        for name, picture in row:
            draw.text((left + 1, top + 1), name, fill="black")
            sheet.paste(to_image(picture), (left, top + CAPTION))
            left += picture.shape[2] + GAP
    return pixels_of(sheet)


def busiest(picture: Tensor, size: int) -> tuple[slice, slice]:
    """Rows and columns of the ``size x size`` pixels of ``[C, H, W]`` in which neighbours differ most."""
    grey = picture.float().mean(0, keepdim=True)
    rows, columns = min(size, grey.shape[1]), min(size, grey.shape[2])
    changes = grey.diff(dim=1, append=grey[:, -1:]).abs() + grey.diff(dim=2, append=grey[..., -1:]).abs()
    sums = F.avg_pool2d(changes, (rows, columns), stride=1)[0]
    top, left = divmod(int(sums.argmax()), sums.shape[1])
    return slice(top, top + rows), slice(left, left + columns)


def enlarged(picture: Tensor, factor: int) -> Tensor:
    """Every pixel as ``factor x factor`` ones."""
    return torch.repeat_interleave(torch.repeat_interleave(picture, factor, -2), factor, -1)
