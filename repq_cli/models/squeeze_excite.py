"""Squeeze-and-excitation (arXiv 1709.01507): every channel times a factor that all of its map decides."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from repq_cli.models.tap import Tap
from repq_cli.reparam.algebra import Geometry
from repq_cli.reparam.block import Block, MakeBlock

MakeAnyBlock = Callable[[Geometry, nn.Module | None], nn.Module]

REDUCTION = 16  # channels of the image's description for one of the two layers' between them


class SqueezeExcite(nn.Module):
    """``x sigmoid(W_2 relu(W_1 mean(x) + b_1) + b_2)``, the mean over each channel's positions.

    Shapes: ``W_1: [C // 16, C]``, ``W_2: [C, C // 16]``. A product is not linear in ``x``: merging ends before it.
    """

    def __init__(self, channels: int, signed: bool) -> None:
        """``signed``: whether ``x`` has values below zero."""
        super().__init__()
        inner = max(1, channels // REDUCTION)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.tap, self.reduce = Tap(signed), nn.Linear(channels, inner)
        self.activation = nn.ReLU()
        self.inner_tap, self.expand = Tap(signed=False), nn.Linear(inner, channels)
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.activation(self.reduce(self.tap(self.pool(x))))
        return x * self.gate(self.expand(self.inner_tap(inner))).unflatten(1, (-1, 1, 1))


class ExcitedBlock(nn.Module):
    """``activation(SE(block(x)))`` in the place of ``activation(block(x))``."""

    def __init__(self, block: Block) -> None:
        """Takes the activation from the block."""
        super().__init__()
        self.excite = SqueezeExcite(block.geometry.out_channels, signed=True)
        self.activation, block.activation = block.activation, nn.Identity()
        self.block = block

    def forward(self, x: Tensor, raw: Tensor | None = None) -> Tensor:
        return self.activation(self.excite(self.block(x, raw)))


def with_excitation(make_block: MakeBlock) -> MakeAnyBlock:
    """``make_block``, with squeeze-and-excitation between each block's sum and its activation."""
    return lambda geometry, activation: ExcitedBlock(make_block(geometry, activation))
