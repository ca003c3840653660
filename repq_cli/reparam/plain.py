"""``rep=none``: one branch, an ordinary convolution with its batch norm."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from repq_cli.reparam.algebra import Geometry
from repq_cli.reparam.block import Block, MakeBlock
from repq_cli.reparam.branch import ConvBranch


def plain_block(geometry: Geometry, activation: nn.Module | None = None, batch_norm: bool = True) -> Block:
    """``activation(BN(conv(x)))``, or ``activation(conv(x) + bias)``."""
    return Block(
        geometry, {"conv": ConvBranch(geometry, batch_norm=batch_norm, bias=not batch_norm)}, activation, "conv"
    )


def only_kernels(sizes: Collection[int], make_block: MakeBlock, otherwise: MakeBlock = plain_block) -> MakeBlock:
    """``make_block`` for convolutions of these kernel sizes, ``otherwise`` for all others.

    The papers re-parameterise some convolutions of a network only: in ResNet-18 the 3x3 ones, not the 1x1 shortcuts.
    """

    def make(geometry: Geometry, activation: nn.Module | None) -> Block:
        return (make_block if geometry.kernel_size in sizes else otherwise)(geometry, activation)

    return make
