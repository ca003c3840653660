"""The XNOR kernel against torch's float32, on one thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from repq_cli.deploy.xnor import BinaryConv, pack

MATMUL = 2048  # rows, columns and length of a product
LAYERS = ((64, 56), (128, 28), (256, 14), (512, 7))  # channels and side of ResNet-18's 3x3 convolutions

Pair = tuple[Callable[[], Any], Callable[[], Any]]


def pairs(batches: list[int]) -> dict[str, Pair]:
    """Calls that do the same in float32 and on packed words, by what they do.

    Matrices are packed beforehand, as both operands would be; of a convolution the weights only, so that packing its
    input and scaling its sums count.
    """
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    first, second = normal(MATMUL, MATMUL), normal(MATMUL, MATMUL)
    matrix = BinaryConv(first.view(MATMUL, MATMUL, 1, 1).sign(), (-1, 1), 1, 0, 1)
    columns = pack(second.view(1, MATMUL, 1, MATMUL), 0.0)
    found: dict[str, Pair] = {
        f"product {MATMUL}x{MATMUL}x{MATMUL}": (lambda: first @ second, lambda: matrix.sums(columns)[0, :, 0])
    }
    for channels, side in LAYERS:
        weight = normal(channels, channels, 3, 3).sign()
        layer, scale = BinaryConv(weight, (-1, 1), 1, 1, 1), normal(channels, 1, 1)
        for batch in batches:
            x = normal(batch, channels, side, side)
            found[f"convolution 3x3 of {batch}x{channels}x{side}x{side}"] = _layer(x, weight, layer, scale)
    return found


def _layer(x: Tensor, weight: Tensor, layer: BinaryConv, scale: Tensor) -> Pair:
    def binary() -> Tensor:
        sums = layer(x, 0.0)
        return torch.mul(sums, scale, out=sums.view(torch.float32))

    return lambda: F.conv2d(x, weight, padding=1), binary
