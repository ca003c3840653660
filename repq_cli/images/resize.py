"""Bicubic resizing as MATLAB's ``imresize`` does it, which the numbers of super-resolution papers rest on.

Libraries differ: Pillow antialiases with another cubic and another border, torch's ``interpolate`` pads otherwise.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

LowRounding = Literal["each_pass", "once"]  # of pictures that are made small

RADIUS = 2.0  # of the cubic


def cubic(x: Tensor) -> Tensor:
    """Keys' cubic with ``a = -1/2``: ``1.5|x|^3 - 2.5|x|^2 + 1`` to 1, ``-0.5|x|^3 + 2.5|x|^2 - 4|x| + 2`` to 2."""
    x = x.abs()
    inner = (1.5 * x - 2.5) * x * x + 1
    outer = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x <= 1, inner, torch.where(x < RADIUS, outer, 0.0))


def taps(size: int, new_size: int, scale: Fraction) -> tuple[Tensor, Tensor]:
    """For each of ``new_size`` pixels the input pixels that it is made of and their weights: ``[new_size, taps]``.

    Shrinking stretches the cubic by ``1 / scale``, which antialiases; pixels beyond the border are mirrored ones.
    """
    stretch = max(1.0, float(1 / scale))
    count = math.ceil(2 * RADIUS * stretch) + 2
    centres = (torch.arange(new_size, dtype=torch.float64) + 0.5) / float(scale) - 0.5
    first = torch.floor(centres - RADIUS * stretch).long()
    indices = first.unsqueeze(1) + torch.arange(count)
    weights = cubic((centres.unsqueeze(1) - indices) / stretch)
    weights /= weights.sum(1, keepdim=True)
    mirrored = torch.remainder(indices, 2 * size)
    used = weights.abs().amax(0) > 0
    return torch.where(mirrored < size, mirrored, 2 * size - 1 - mirrored)[:, used], weights[:, used]


def resize(images: Tensor, scale: Fraction, eight_bit: bool = False) -> Tensor:
    """``images [..., H, W]`` made ``scale`` times as large, ``ceil(scale * H)`` high, as float32.

    Two passes, the height first, as MATLAB takes equal scales; neither rounded nor clipped, and the cubic overshoots.
    eight_bit: both after each pass, ties away from zero, as MATLAB does to uint8. (Sums of bytes by weights of
    1/2 and 1/4 are exact in float32, so that ties are ties; for 1/3 there are none.)
    """
    result = images.float()
    for dim in (-2, -1):
        size = result.shape[dim]
        indices, weights = taps(size, math.ceil(size * scale), scale)
        shape = (-1, *[1] * (-1 - dim))
        passes = zip(indices.T, weights.float().T, strict=True)
        parts = (result.index_select(dim, index) * weight.view(shape) for index, weight in passes)
        total = next(parts)
        for part in parts:
            total += part
        result = torch.floor(total.clamp(0, 255) + 0.5) if eight_bit else total
    return result


def to_bytes(images: Tensor) -> Tensor:
    """Values of 0..255 clipped and rounded to ``uint8``."""
    return images.clamp(0, 255).round().to(torch.uint8)


def shrink(images: Tensor, factor: int, rounding: LowRounding = "each_pass") -> Tensor:
    """``uint8 [..., H, W]`` of ``1 / factor`` the size, as ``uint8``; sides must be multiples of it.

    rounding: ``each_pass`` gives the bytes of MATLAB's ``imresize``, which published low-resolution pictures have;
    ``once`` rounds at the end, as ``imresize`` of floats.
    """
    return to_bytes(resize(images, Fraction(1, factor), eight_bit=rounding == "each_pass"))


def enlarge(images: Tensor, factor: int) -> Tensor:
    """``[..., H, W]`` of ``factor`` times the size, float32, not rounded: what networks are compared with.

    Published figures of bicubic come from floats, too: rounding each pass lowers them by another 0.01 dB at most.
    """
    return resize(images, Fraction(factor))
