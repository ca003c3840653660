"""``rep=dbb``: the diverse branch block (arXiv 2103.13425)."""

from __future__ import annotations

from torch import nn

from repq_cli.reparam.algebra import Geometry
from repq_cli.reparam.block import Block
from repq_cli.reparam.branch import Branch, ConvBranch
from repq_cli.reparam.sequential import AverageBranch, PointConvBranch, identity_point


def dbb_block(geometry: Geometry, activation: nn.Module | None = None, batch_norm: bool = True) -> Block:
    """kxk, 1x1, 1x1 -> average and 1x1 -> kxk, a batch norm behind every layer (or one bias for all), summed.

    The first layer of 1x1 -> kxk starts as the identity. A depthwise convolution has no 1x1 branch, averages its input
    itself, and is 2I wide between 1x1 and kxk, as in the published code.
    """
    inputs = geometry.in_channels
    branches: dict[str, Branch] = {"dense": ConvBranch(geometry, batch_norm=batch_norm, bias=not batch_norm)}
    if geometry.groups == geometry.out_channels:
        if inputs != geometry.out_channels:
            raise ValueError(
                f"rep=dbb averages the input itself where every output has a group of its own, so {geometry} would "
                f"need as many inputs as outputs."
            )
        wide = nn.Conv2d(inputs, 2 * inputs, 1, groups=geometry.groups, bias=False)
        branches["average"] = AverageBranch(geometry, None, batch_norm)
        branches["point_dense"] = PointConvBranch(geometry, wide, batch_norm)
    else:
        mixing = nn.Conv2d(inputs, geometry.out_channels, 1, groups=geometry.groups, bias=False)
        branches["point"] = ConvBranch(geometry, (1, 1), batch_norm)
        branches["average"] = AverageBranch(geometry, mixing, batch_norm)
        branches["point_dense"] = PointConvBranch(geometry, identity_point(geometry, inputs), batch_norm)
    return Block(geometry, branches, activation, "dbb")
