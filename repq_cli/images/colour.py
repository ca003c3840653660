"""Luma and chroma by ITU-R BT.601 with studio swing: Y in 16..235, Cb and Cr in 16..240, as MATLAB's ``rgb2ycbcr``."""

from __future__ import annotations

import torch
from torch import Tensor

OFFSETS = (16.0, 128.0, 128.0)
# Rows Y, Cb, Cr over R, G, B in 0..255.
MATRIX = (
    (65.481 / 255, 128.553 / 255, 24.966 / 255),
    (-37.797 / 255, -74.203 / 255, 112.0 / 255),
    (112.0 / 255, -93.786 / 255, -18.214 / 255),
)

GREY = (19595, 38470, 7471)  # 65536 times BT.601's weights of full swing


def luma(rgb: Tensor) -> Tensor:
    """``Y = 16 + (65.481 R + 128.553 G + 24.966 B) / 255`` of ``[..., 3, H, W]`` in 0..255: float32 ``[..., 1, H, W]``.

    >>> luma(torch.full((3, 1, 1), 255.0)).item()
    235.0
    """
    weights = torch.tensor(MATRIX[0], dtype=torch.float32, device=rgb.device).view(3, 1, 1)
    return (rgb.float() * weights).sum(-3, keepdim=True) + OFFSETS[0]


def in_channels(images: Tensor, channels: int) -> Tensor:
    """``uint8 [..., C, H, W]`` of one or three channels with as many as asked for.

    Grey is ``(19595 R + 38470 G + 7471 B) / 65536``, rounded, as Pillow makes it; of grey come three equal channels.

    >>> in_channels(torch.tensor([[[255]], [[0]], [[0]]], dtype=torch.uint8), 1).item()
    76
    """
    if images.shape[-3] == channels:
        return images
    if channels == 3:
        return images.repeat_interleave(3, -3)
    weights = torch.tensor(GREY, dtype=torch.int32, device=images.device).view(3, 1, 1)
    return ((images.int() * weights).sum(-3, keepdim=True, dtype=torch.int32) + (1 << 15) >> 16).to(torch.uint8)


def to_ycbcr(rgb: Tensor) -> Tensor:
    """``[..., 3, H, W]`` in 0..255 as Y, Cb, Cr, float32, not rounded."""
    matrix, offsets = _matrix(rgb)
    return torch.einsum("ij,...jhw->...ihw", matrix, rgb.float()) + offsets


def to_rgb(ycbcr: Tensor) -> Tensor:
    """The inverse of ``to_ycbcr``, float32, neither rounded nor clipped."""
    matrix, offsets = _matrix(ycbcr)
    return torch.einsum("ij,...jhw->...ihw", torch.linalg.inv(matrix), ycbcr.float() - offsets)


def _matrix(like: Tensor) -> tuple[Tensor, Tensor]:
    matrix = torch.tensor(MATRIX, dtype=torch.float32, device=like.device)
    return matrix, torch.tensor(OFFSETS, dtype=torch.float32, device=like.device).view(3, 1, 1)
