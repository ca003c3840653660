"""Branches of two layers in sequence: a 1x1 convolution, then a spatial map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from repq_cli import strided_points
from repq_cli.batch_norm import norm_multiplier
from repq_cli.precision import in_float32
from repq_cli.reparam.algebra import (
    Geometry,
    Kernel,
    depthwise_then_point,
    identity_kernel,
    pad_input,
    point_then_average,
    point_then_conv,
)
from repq_cli.reparam.branch import Branch, fold, kernel_of, without_bias
from repq_cli.reparam.statistics import Statistics


class PlusIdentity(nn.Module):
    """The parametrization ``weight = E + delta`` of a 1x1 convolution that starts as the identity (``delta = 0``)."""

    identity: Tensor

    def __init__(self, geometry: Geometry, rows: int) -> None:
        super().__init__()
        identity = identity_kernel(geometry.in_channels, geometry.groups, torch.empty(0), rows)
        self.register_buffer("identity", identity, persistent=False)

    def forward(self, delta: Tensor) -> Tensor:
        return self.identity + delta


def identity_point(geometry: Geometry, width: int) -> nn.Conv2d:
    """A trainable 1x1 convolution of ``width`` outputs that starts as the identity and decays towards it."""
    point = nn.Conv2d(geometry.in_channels, width, 1, groups=geometry.groups, bias=False)
    nn.init.zeros_(point.weight)
    # "unsafe" leaves out a trial of it, for which torch, on the device meta, would import its compiler.
    parametrize.register_parametrization(point, "weight", PlusIdentity(geometry, width), unsafe=True)
    return point


class PointFirst(Branch):
    """1x1 convolution [-> batch norm] -> spatial map [-> batch norm]; what the spatial map is, subclasses say.

    The map between the two is padded with what the first layer gives to a zero pixel, so that the sequence is exactly
    one convolution, borders included and in training as well: its bias, for which the input is padded before it, or
    its batch norm's image of zero. (The published code of arXiv 2103.13425 pads with the value by running statistics
    while the interior uses those of the batch.)
    """

    like: Tensor  # has the block's device and dtype, where there is no layer to ask

    def __init__(self, geometry: Geometry, point: nn.Conv2d | None, batch_norm: bool) -> None:
        """Without a ``point`` the spatial map reads the input itself."""
        super().__init__()
        self.geometry, self.point = geometry, point
        self.register_buffer("like", torch.zeros(0), persistent=False)
        width = geometry.in_channels if point is None else point.out_channels
        self.point_norm = nn.BatchNorm2d(width) if batch_norm and point is not None else None
        self.norm = nn.BatchNorm2d(geometry.out_channels) if batch_norm else None
        # The first layer sees the input as it is, before padding.
        self.point_geometry = Geometry(geometry.in_channels, width, 1, 1, 0, geometry.groups)

    def spatial(self, z: Tensor) -> Tensor:
        """The second layer on the padded map between the two."""
        raise NotImplementedError

    def merge_spatial(self, first: Kernel) -> Kernel:
        """The first layer ``[T, I/g, 1, 1], [T]`` and the second as one kernel ``[O, I/g, k, k], [O]``."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        y = self.spatial(self._padded(x))
        return y if self.norm is None else self.norm(y)

    def _padded(self, x: Tensor) -> Tensor:
        padding = (self.geometry.padding,) * 2
        if self.point is None:
            return pad_input(x, padding)
        if self.point_norm is None:
            return self.point(pad_input(x, padding))
        z = self.point(x)
        zero = _image_of_zero(self.point_norm, in_float32(z))
        return pad_input(self.point_norm(z) - zero, padding) + zero

    def merged(self, statistics: Statistics) -> Kernel:
        first = self._point_kernel()
        if self.point_norm is not None:
            first = fold(self.point_norm, first, statistics, self.point_geometry)
        kernel = self.merge_spatial(first)
        return kernel if self.norm is None else fold(self.norm, kernel, statistics, self.geometry)

    def _point_kernel(self) -> Kernel:
        if self.point is not None:
            return kernel_of(self.point)
        like = self.like if self.norm is None else self.norm.weight
        return without_bias(identity_kernel(self.geometry.in_channels, self.geometry.groups, like))


def _image_of_zero(norm: nn.BatchNorm2d, y: Tensor) -> Tensor:
    """``[C, 1, 1]``: what the batch norm gives to a zero pixel of its input ``y``: ``beta - mean gamma / sigma``."""
    if norm.training:
        var, mean = torch.var_mean(y, dim=(0, 2, 3), correction=0)
    else:
        assert norm.running_mean is not None and norm.running_var is not None
        mean, var = norm.running_mean, norm.running_var
    return (norm.bias - norm_multiplier(mean * norm.weight, var, norm.eps)).view(-1, 1, 1)


class PointConvBranch(PointFirst):
    """1x1 convolution, then a kxk one; ``bias``: the second has one of its own."""

    def __init__(self, geometry: Geometry, point: nn.Conv2d, batch_norm: bool, bias: bool = False) -> None:
        super().__init__(geometry, point, batch_norm)
        size = geometry.kernel_size
        self.conv = nn.Conv2d(point.out_channels, geometry.out_channels, size, groups=geometry.groups, bias=bias)

    def spatial(self, z: Tensor) -> Tensor:
        conv, strides = self.conv, self.geometry.strides
        if strided_points.is_unsafe(z, conv.weight, strides):
            z, strides = strided_points.thinned(z, (0, 0), strides), (1, 1)
        return F.conv2d(z, conv.weight, conv.bias, strides, 0, 1, self.geometry.groups)

    def merge_spatial(self, first: Kernel) -> Kernel:
        weight, bias = point_then_conv(first, self.conv.weight, self.geometry.groups)
        return Kernel(weight, bias if self.conv.bias is None else bias + self.conv.bias)


class AverageBranch(PointFirst):
    """1x1 convolution, then the average over kxk positions; without the convolution the input's own average."""

    def spatial(self, z: Tensor) -> Tensor:
        return F.avg_pool2d(z, self.geometry.kernel_size, self.geometry.stride)

    def merge_spatial(self, first: Kernel) -> Kernel:
        return point_then_average(first, self.geometry.kernel_size)


class SeparableBranch(Branch):
    """Depthwise kxk convolution of ``expansion`` outputs per input, then a 1x1 one."""

    def __init__(self, geometry: Geometry, expansion: int) -> None:
        super().__init__()
        self.geometry = geometry
        width, size = geometry.in_channels * expansion, geometry.kernel_size
        self.depthwise = nn.Conv2d(geometry.in_channels, width, size, groups=geometry.in_channels, bias=False)
        self.point = nn.Conv2d(width, geometry.out_channels, 1, groups=geometry.groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        geometry = self.geometry
        y = F.conv2d(x, self.depthwise.weight, None, geometry.stride, geometry.padding, 1, geometry.in_channels)
        return self.point(y)

    def merged(self, statistics: Statistics) -> Kernel:
        geometry = self.geometry
        depthwise, point = self.depthwise.weight, self.point.weight
        return without_bias(depthwise_then_point(depthwise, point, geometry.in_channels, geometry.groups))
