"""``rep=ecb``: the edge-oriented convolution block, which has no batch norm (Zhang et al., ACM Multimedia 2021)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repq_cli.bounds import Range
from repq_cli.reparam.algebra import Geometry, Kernel
from repq_cli.reparam.block import Block, splitting
from repq_cli.reparam.branch import Branch, ConvBranch, IdentityBranch
from repq_cli.reparam.sequential import PointConvBranch, PointFirst

# First and second derivatives; each sums to zero, so the bias of the 1x1 convolution in front never reaches the output.
MASKS = {
    "sobel_x": ((1.0, 0.0, -1.0), (2.0, 0.0, -2.0), (1.0, 0.0, -1.0)),
    "sobel_y": ((1.0, 2.0, 1.0), (0.0, 0.0, 0.0), (-1.0, -2.0, -1.0)),
    "laplacian": ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0)),
}
SCALE_INIT = 1e-3


class EdgeBranch(PointFirst):
    """1x1 convolution with bias, then a fixed edge filter with a learned scale and bias for each output.

    ``W[o,i,a,b] = scale[o] mask[a,b] point[o,i]``, ``b[o] = scale[o] (sum mask) point_bias[o] + bias[o]``.

    Shapes: ``scale, bias: [O]``, drawn from ``1e-3 N(0, 1)``; ``mask: [3, 3]``.
    """

    mask: Tensor

    def __init__(self, geometry: Geometry, mask: str) -> None:
        point = nn.Conv2d(geometry.in_channels, geometry.out_channels, 1, groups=geometry.groups)
        super().__init__(geometry, point, batch_norm=False)
        self.register_buffer("mask", torch.tensor(MASKS[mask]), persistent=False)
        self.scale = nn.Parameter(SCALE_INIT * torch.randn(geometry.out_channels))
        self.bias = nn.Parameter(SCALE_INIT * torch.randn(geometry.out_channels))

    def _filters(self) -> Tensor:
        return self.scale.view(-1, 1, 1, 1) * self.mask

    def spatial(self, z: Tensor) -> Tensor:
        return F.conv2d(z, self._filters(), self.bias, self.geometry.stride, 0, 1, self.geometry.out_channels)

    def merge_spatial(self, first: Kernel) -> Kernel:
        return Kernel(first.weight * self._filters(), self.scale * self.mask.sum() * first.bias + self.bias)


def ecb_block(
    geometry: Geometry,
    activation: nn.Module | None = None,
    batch_norm: Literal[False] = False,
    identity: Literal[False, True, "split"] = False,
    expansion: Annotated[float, Range(0, None, open_low=True)] = 2.0,
) -> Block:
    """``activation(3x3 + 1x1-3x3 + 1x1-Sobel-x + 1x1-Sobel-y + 1x1-Laplacian [+ x])``, every layer with a bias.

    identity: add the input, too, where it has the output's shape; every published configuration leaves it out.
        ``split`` quantizes it apart from the rest of the merged kernel, see ``quant/split.py``.
    expansion: channels between 1x1 and 3x3, as a multiple of the *outputs*.
    Raises ValueError for kernels that are not 3x3, which the edge filters are.
    """
    if geometry.kernel_size != 3:
        raise ValueError(
            f"rep=ecb has edge filters of 3x3, and this kernel is {geometry.kernel_size}x{geometry.kernel_size}: "
            f"use rep.kernels=[3]."
        )
    groups = geometry.groups
    wide = max(1, int(expansion * geometry.out_channels) // groups) * groups
    point = nn.Conv2d(geometry.in_channels, wide, 1, groups=groups)
    branches: dict[str, Branch] = {
        "dense": ConvBranch(geometry, batch_norm=False, bias=True),
        "point_dense": PointConvBranch(geometry, point, batch_norm=False, bias=True),
        **{name: EdgeBranch(geometry, name) for name in MASKS},
    }
    if identity and geometry.keeps_shape:
        branches["identity"] = IdentityBranch(geometry, batch_norm=False)
    return splitting(Block(geometry, branches, activation, "ecb"), identity)
