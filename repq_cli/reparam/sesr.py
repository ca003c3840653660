"""``rep=sesr``: the collapsible linear block of super-resolution, which has no batch norm (arXiv 2103.09404)."""

from __future__ import annotations

from typing import Annotated, Literal

from torch import Tensor, nn

from repq_cli.bounds import Range
from repq_cli.reparam.algebra import Geometry, Kernel, conv_then_point, convolve
from repq_cli.reparam.block import Block, Identity, splitting
from repq_cli.reparam.branch import Branch, IdentityBranch
from repq_cli.reparam.statistics import Statistics


class ExpandingBranch(Branch):
    """A kxk convolution into ``width`` channels, then a 1x1 convolution with bias back to the block's outputs.

    ``W[o,i,a,b] = sum_t point[o,t] conv[t,i,a,b]``, exact at the border too: no padding stands between the two.

    Shapes: ``conv.weight: [T, I/g, k, k]``, ``point.weight: [O, T/g, 1, 1]``, ``point.bias: [O]``; ``T = width``.
    """

    def __init__(self, geometry: Geometry, width: int) -> None:
        super().__init__()
        self.geometry = geometry
        groups = geometry.groups
        self.conv = nn.Conv2d(geometry.in_channels, width, geometry.kernel_size, groups=groups, bias=False)
        self.point = nn.Conv2d(width, geometry.out_channels, 1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.point(convolve(x, self.conv.weight, self.geometry))

    def merged(self, statistics: Statistics) -> Kernel:
        assert self.point.bias is not None
        return Kernel(conv_then_point(self.conv.weight, self.point.weight, self.geometry.groups), self.point.bias)


def sesr_block(
    geometry: Geometry,
    activation: nn.Module | None = None,
    batch_norm: Literal[False] = False,
    expansion: Annotated[int, Range(1, 65536)] = 256,
    identity: Identity = True,
) -> Block:
    """``activation(W_2 (W_1 * x) + b [+ x])``, which trains as the one convolution that it is.

    expansion: the channels between the two convolutions, the published ``p``; made a multiple of the groups.
    identity: of a block that keeps its input's shape; ``split`` quantizes it apart, see ``quant/split.py``.
    """
    width = -(-expansion // geometry.groups) * geometry.groups
    found: dict[str, Branch] = {"expand": ExpandingBranch(geometry, width)}
    if geometry.keeps_shape:
        found["identity"] = IdentityBranch(geometry, batch_norm=False)
    return splitting(Block(geometry, found, activation, "sesr"), identity)
