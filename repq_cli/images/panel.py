"""Pictures next to each other under their names, to be looked at."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
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
