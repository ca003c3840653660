"""``rep=none``: one branch, an ordinary convolution with its batch norm."""

from __future__ import annotations

from torch import nn

from repq_cli.reparam.algebra import Geometry
from repq_cli.reparam.block import Block
from repq_cli.reparam.branch import ConvBranch


def plain_block(geometry: Geometry, activation: nn.Module | None = None) -> Block:
    """``activation(BN(conv(x)))``."""
    return Block(geometry, {"conv": ConvBranch(geometry)}, activation)
