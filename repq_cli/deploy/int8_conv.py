"""Exact sums of 8-bit codes by torch's own int8 kernel (oneDNN), several times as fast as in float32.

Its sums are int32, and float32 behind; on processors that add products in 16 bits they saturate. So it is tried before
it is used, on the codes that make the largest sums.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from repq_cli.quant.sums import weighted_sums
from repq_cli.quant.windows import Window, pair

UINT8 = 255


class Int8Conv:
    """``weighted_sums(codes, weight, None, window)``, channels last in memory, of codes from ``low`` to ``high``.

    weight: codes ``[O, C/g, kh, kw]``, in float; around the image there are zeros.
    """

    def __init__(self, weight: Tensor, window: Window, low: int, high: int) -> None:
        self.moved = 0 if low >= 0 else -low
        spans = [list(pair(span)) for span in (window.stride, window.padding, window.dilation)]
        one = torch.ones(len(weight))
        operators = torch.ops.onednn
        packed = operators.qconv_prepack(weight.to(torch.int8), one, 1.0, self.moved, *spans, window.groups, None)
        none = torch.zeros(len(weight), dtype=torch.int64)
        self._kernel = operators.qconv2d_pointwise
        self._behind = (packed, one, none, None, *spans, window.groups, 1.0, 0, torch.float32, "none", [], "")

    def __call__(self, codes: Tensor) -> Tensor:
        moved = (codes + self.moved).to(torch.uint8).contiguous(memory_format=torch.channels_last)
        found: Tensor = self._kernel(moved, 1.0, self.moved, *self._behind)
        return found


def int8_conv(weight: Tensor, window: Window, low: int, high: int) -> Int8Conv | None:
    """The kernel, where this build of torch has it, its type holds the codes, and its sums are exact; else None."""
    fits = high - min(low, 0) <= UINT8 and weight.min() >= -128 and weight.max() <= 127
    if not fits or not isinstance(window.padding, int | tuple):
        return None
    inputs, rows, columns = weight.shape[1:]
    generator = torch.Generator().manual_seed(0)
    shape = (2, inputs * window.groups, rows + 4, columns + 4)
    codes = torch.where(torch.rand(shape, generator=generator) < 0.5, low, high).float()
    codes[0] = high
    try:
        kernel: Any = Int8Conv(weight, window, low, high)
        exact = torch.equal(kernel(codes), weighted_sums(codes, weight, None, window))
    except (AttributeError, RuntimeError):  # another build of torch
        return None
    return kernel if exact else None
