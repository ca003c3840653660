"""1x1 convolutions with a stride on CPUs, where oneDNN's gradient of the weight may write past its memory.

With channels last in memory, and fewer of them than a register has numbers (8 with AVX2, 16 with AVX-512), it ends the
process, or changes what lies behind: a weight ``[6, 3, 1, 1]`` with stride 2 over a map of any size does (torch 2.14).
A convolution without stride over the positions that such a kernel sees is the same.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

Pair = tuple[int, int]  # rows, columns
REGISTER = 16  # numbers


def is_unsafe(x: Tensor, weight: Tensor, strides: Pair) -> bool:
    """Whether ``x`` should be thinned for ``conv2d(x, weight, stride=strides)``."""
    points, few = weight.shape[2:].numel() == 1, weight.shape[1] < REGISTER
    return points and few and strides != (1, 1) and x.device.type == "cpu"


def thinned(x: Tensor, padding: Pair, strides: Pair) -> Tensor:
    """What a 1x1 kernel reads of ``x: [B, C, H, W]``, position by position of its output; negative padding crops."""
    (rows, columns), (down, across) = padding, strides
    x = F.pad(x, (columns, columns, rows, rows)) if rows or columns else x
    return x if strides == (1, 1) else x[:, :, ::down, ::across]
