"""``rep=none``: one branch, an ordinary convolution with its batch norm."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from repq_cli.reparam.algebra import Geometry
from repq_cli.reparam.block import Block, MakeBlock
from repq_cli.reparam.branch import ConvBranch


def plain_block(geometry: Geometry, activation: nn.Module | None = None) -> Block:
    """``activation(BN(conv(x)))``."""
    return Block(geometry, {"conv": ConvBranch(geometry)}, activation, "conv")


def only_kernels(sizes: Collection[int], make_block: MakeBlock) -> MakeBlock:
    """``make_block`` for convolutions of these kernel sizes, ordinary convolutions for all others.

    The papers re-parameterise some convolutions of a network only: in ResNet-18 the 3x3 ones, not the 1x1 shortcuts.
    """

    def make(geometry: Geometry, activation: nn.Module | None) -> Block:
        return (make_block if geometry.kernel_size in sizes else plain_block)(geometry, activation)

    return make
