"""Pictures that are too large for memory, tile by tile and without seams."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Upscaler(Protocol):
    """A network that enlarges ``[B, C, h, w]``; ``halo``: how many input pixels away an output pixel looks."""

    halo: int

    def __call__(self, x: Tensor) -> Tensor: ...


def run_in_tiles(net: Upscaler, x: Tensor, scale: int, tile: int) -> Tensor:
    """``net(x)`` as ``[B, C, s h, s w]``, from tiles of at most ``tile`` input pixels a side.

    Each tile is run with the ``halo`` around it, so that its pixels see what they see in the whole picture: the result
    is that of the whole, up to the order in which a convolution sums.
    """
    rows, columns = x.shape[-2:]
    if rows <= tile and columns <= tile:
        return net(x)
    result = x.new_empty(0)
    for top in range(0, rows, tile):
        for left in range(0, columns, tile):
            bottom, right = min(top + tile, rows), min(left + tile, columns)
            above, before = min(net.halo, top), min(net.halo, left)
            part = net(x[..., top - above : bottom + net.halo, left - before : right + net.halo])
            if result.numel() == 0:
                result = x.new_empty(*part.shape[:2], rows * scale, columns * scale)
            kept = part[..., above * scale : (above + bottom - top) * scale, before * scale :]
            result[..., top * scale : bottom * scale, left * scale : right * scale] = kept[
                ..., : (right - left) * scale
            ]
    return result
