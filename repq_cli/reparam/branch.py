"""Linear branches: each runs on its own, and each merges into one kernel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repq_cli.reparam.algebra import Geometry, Kernel, fold_batch_norm, identity_kernel, pad_input
from repq_cli.reparam.statistics import Statistics


class Branch(nn.Module):
    """A linear map of the block's input; ``merged`` gives it as ``(weight, bias)``.

    ``merged`` is differentiable, has no side effects of its own and reads batch-norm statistics only from its argument.
    """

    def merged(self, statistics: Statistics) -> Kernel:
        raise NotImplementedError


def _fold(norm: nn.BatchNorm2d, weight: Tensor, statistics: Statistics, *, identity: bool = False) -> Kernel:
    mean, var = statistics(norm, None if identity else weight)
    bias = torch.zeros_like(mean)
    return fold_batch_norm(Kernel(weight, bias), norm.weight, norm.bias, mean, var, norm.eps)


class ConvBranch(Branch):
    """Convolution -> batch norm, or a convolution with a bias where ``batch_norm`` is off.

    Shapes: conv.weight ``[O, I/g, kh, kw]``, centred in the block's kernel; norm ``[O]``.
    """

    def __init__(self, geometry: Geometry, kernel_size: tuple[int, int] | None = None, batch_norm: bool = True) -> None:
        super().__init__()
        size = kernel_size or (geometry.kernel_size,) * 2
        padding = geometry.padding_of(size)
        self.crops = min(padding) < 0  # a small kernel inside a large unpadded one does not reach the border
        self.padding = padding
        self.conv = nn.Conv2d(
            geometry.in_channels,
            geometry.out_channels,
            size,
            geometry.stride,
            0 if self.crops else padding,
            groups=geometry.groups,
            bias=not batch_norm,
        )
        self.norm = nn.BatchNorm2d(geometry.out_channels) if batch_norm else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(pad_input(x, self.padding) if self.crops else x)
        return y if self.norm is None else self.norm(y)

    def merged(self, statistics: Statistics) -> Kernel:
        if self.norm is None:
            assert self.conv.bias is not None
            return Kernel(self.conv.weight, self.conv.bias)
        return _fold(self.norm, self.conv.weight, statistics)


class IdentityBranch(Branch):
    """Batch norm of the input itself; legal where the block keeps its input's shape."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        if not geometry.keeps_shape:
            raise ValueError(f"An identity branch needs output and input of one shape, which {geometry} has not.")
        self.groups = geometry.groups
        self.norm = nn.BatchNorm2d(geometry.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)

    def merged(self, statistics: Statistics) -> Kernel:
        kernel = identity_kernel(self.norm.num_features, self.groups, like=self.norm.weight)
        return _fold(self.norm, kernel, statistics, identity=True)
