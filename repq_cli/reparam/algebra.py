"""Pure transforms of a linear map ``(weight, bias)``. Everything here is differentiable and keeps no state."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from repq_cli.batch_norm import norm_multiplier


class Kernel(NamedTuple):
    """A convolution's parameters: weight ``[O, I/g, kh, kw]`` and bias ``[O]``."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Geometry:
    """The convolution that a block merges into: a square, odd kernel, dilation 1."""

    in_channels: int
    out_channels: int
    kernel_size: int = 3
    stride: int = 1
    padding: int = 1
    groups: int = 1

    def __post_init__(self) -> None:
        if self.kernel_size % 2 == 0:
            raise ValueError(
                f"A re-parameterised block needs an odd kernel to centre its branches on; "
                f"kernel_size={self.kernel_size} is even: use {self.kernel_size + 1}."
            )
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise ValueError(
                f"groups={self.groups} must divide in_channels={self.in_channels} and out_channels={self.out_channels}."
            )

    def padding_of(self, kernel_size: tuple[int, int]) -> tuple[int, int]:
        """Padding (rows, columns) of a smaller, centred kernel; a negative one crops the input."""
        rows, columns = (self.padding - (self.kernel_size - extent) // 2 for extent in kernel_size)
        return rows, columns

    def out_size(self, x: Tensor) -> tuple[int, int]:
        """Rows and columns of the output for an input ``[B, I, H, W]``."""
        rows, columns = ((size + 2 * self.padding - self.kernel_size) // self.stride + 1 for size in x.shape[2:])
        return rows, columns

    @property
    def weight_shape(self) -> torch.Size:
        """``[O, I/g, k, k]``."""
        size = self.kernel_size
        return torch.Size([self.out_channels, self.in_channels // self.groups, size, size])

    @property
    def depthwise(self) -> bool:
        """Whether every output channel reads one input channel."""
        return self.groups == self.in_channels > 1

    @property
    def keeps_shape(self) -> bool:
        """Whether the input itself may be added to the output (an identity branch)."""
        same_size = self.stride == 1 and self.padding == self.kernel_size // 2
        return same_size and self.in_channels == self.out_channels


def fold_batch_norm(kernel: Kernel, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor, eps: float) -> Kernel:
    """Absorb the batch norm that follows a convolution.

    ``t = gamma / sqrt(var + eps)``, ``weight' = weight * t``, ``bias' = beta + (bias - mean) * t``.

    Shapes: ``gamma, beta, mean, var: [O]``; ``mean`` and ``var`` describe the convolution's output *with* its bias.
    Source: arXiv 2101.03697, eq. 3.
    """
    multiplier = norm_multiplier(gamma, var, eps)
    weight = kernel.weight * multiplier.view(-1, 1, 1, 1)
    return Kernel(weight, beta + (kernel.bias - mean) * multiplier)


def pad_input(x: Tensor, padding: tuple[int, int]) -> Tensor:
    """Zero-pad (or, where negative, crop) rows and columns of ``[B, C, H, W]`` on both sides."""
    rows, columns = padding
    return F.pad(x, (columns, columns, rows, rows))


def pad_kernel(weight: Tensor, kernel_size: int) -> Tensor:
    """Zero-pad ``[O, I, kh, kw]`` (odd kh, kw) around its centre to ``[O, I, kernel_size, kernel_size]``."""
    rows = (kernel_size - weight.shape[2]) // 2
    columns = (kernel_size - weight.shape[3]) // 2
    return F.pad(weight, (columns, columns, rows, rows)) if rows or columns else weight


LARGE_MAP = 100 * 100  # positions


class Window(NamedTuple):
    """How ``conv2d`` is to walk over its input: its last four arguments."""

    stride: int
    padding: tuple[int, int]
    dilation: int
    groups: int


def window_over(x: Tensor, kernel_size: torch.Size, geometry: Geometry) -> tuple[Tensor, Window]:
    """``x``, cropped where a small kernel sits in a large, unpadded one, and how a centred kernel walks over it."""
    rows, columns = geometry.padding_of((kernel_size[0], kernel_size[1]))
    padding = (max(rows, 0), max(columns, 0))
    if (rows, columns) != padding:
        x = pad_input(x, (min(rows, 0), min(columns, 0)))
    return x, Window(geometry.stride, padding, 1, geometry.groups)


def convolve(x: Tensor, weight: Tensor, geometry: Geometry, bias: Tensor | None = None) -> Tensor:
    """``x * weight + bias``, for a weight of the geometry's size or a smaller one in its centre.

    Over a large map on a CPU a strided 1x1 kernel reads what it sees alone: backward of few channels, with channels
    last, ends the process in oneDNN.
    """
    point, positions = tuple(weight.shape[2:]) == (1, 1), x.shape[-2] * x.shape[-1]
    if point and geometry.stride > 1 and x.device.type == "cpu" and positions > LARGE_MAP:
        return F.conv2d(seen_by_point(x, geometry), weight, bias, 1, 0, 1, geometry.groups)
    x, window = window_over(x, weight.shape[2:], geometry)
    return F.conv2d(x, weight, bias, *window)


def seen_by_point(x: Tensor, geometry: Geometry) -> Tensor:
    """What a centred 1x1 kernel reads of ``x``, position by position of the output: ``x`` itself where it may."""
    rows, columns = geometry.padding_of((1, 1))
    x = pad_input(x, (rows, columns)) if rows or columns else x
    return x if geometry.stride == 1 else x[:, :, :: geometry.stride, :: geometry.stride]


def identity_kernel(channels: int, groups: int, like: Tensor, rows: int | None = None) -> Tensor:
    """The 1x1 kernel that copies its input: ``E[o, o mod (channels/groups)] = 1``, shape ``[rows, channels/g, 1, 1]``.

    ``rows`` (a multiple of ``channels / groups``) beyond ``channels``, its default, copy the same inputs again.
    """
    width = channels // groups
    copies = (rows or channels) // width
    return torch.eye(width, dtype=like.dtype, device=like.device).repeat(copies, 1).view(-1, width, 1, 1)


def add_kernels(kernels: Iterable[Kernel], kernel_size: int) -> Kernel:
    """Merge parallel convolutions: the sum of their centred weights and of their biases."""
    weights, biases = zip(*((pad_kernel(weight, kernel_size), bias) for weight, bias in kernels), strict=True)
    return Kernel(sum(weights[1:], weights[0]), sum(biases[1:], biases[0]))


def point_then_conv(first: Kernel, second: Tensor, groups: int) -> Kernel:
    """Merge a 1x1 convolution and the kxk convolution behind it.

    ``W[o,i,a,b] = sum_t second[o,t,a,b] first[t,i]``, ``b[o] = sum_tab second[o,t,a,b] bias[t]``, group by group.
    Equals the sequence if the map between them is padded with ``bias``, what the first gives to a zero pixel.

    Shapes: ``first: [T, I/g, 1, 1], [T]``; ``second: [O, T/g, k, k]``. Source: arXiv 2103.13425, section 3.2.
    """
    weight = first.weight.view(groups, -1, first.weight.shape[1])
    grouped = second.view(groups, -1, *second.shape[1:])
    merged = torch.einsum("gti,gotab->goiab", weight, grouped)
    bias = torch.einsum("gotab,gt->go", grouped, first.bias.view(groups, -1))
    return Kernel(merged.reshape(second.shape[0], -1, *second.shape[2:]), bias.flatten())


def conv_then_point(first: Tensor, second: Tensor, groups: int) -> Tensor:
    """Merge a kxk convolution and the 1x1 convolution behind it: ``W[o,i,a,b] = sum_t second[o,t] first[t,i,a,b]``.

    Shapes: ``first: [T, I/g, k, k]``, ``second: [O, T/g, 1, 1]``, group by group; the result ``[O, I/g, k, k]``.
    """
    merged = torch.einsum(
        "got,gtiab->goiab", second.view(groups, -1, second.shape[1]), first.view(groups, -1, *first.shape[1:])
    )
    return merged.reshape(second.shape[0], *first.shape[1:])


def point_then_average(first: Kernel, kernel_size: int) -> Kernel:
    """Merge a 1x1 convolution and the average pooling behind it: ``W[o,i,a,b] = first[o,i] / k^2``, the bias stays."""
    return Kernel(first.weight.expand(-1, -1, kernel_size, kernel_size) / kernel_size**2, first.bias)


def depthwise_then_point(depthwise: Tensor, point: Tensor, in_channels: int, groups: int) -> Tensor:
    """Merge a depthwise convolution of ``e`` outputs per input channel and the 1x1 convolution behind it.

    ``W[o,i,a,b] = sum_{j<e} point[o, i e + j] depthwise[i e + j, 0, a, b]``, ``i`` running over the group of ``o``.

    Shapes: ``depthwise: [I e, 1, k, k]``, ``point: [O, I e / g, 1, 1]``; the result ``[O, I/g, k, k]``.
    Source: arXiv 2204.00826, section 3.2.
    """
    out_channels, size, width = point.shape[0], depthwise.shape[2:], in_channels // groups
    merged = torch.einsum(
        "goie,gieab->goiab",
        point.view(groups, out_channels // groups, width, -1),
        depthwise.view(groups, width, -1, *size),
    )
    return merged.reshape(out_channels, width, *size)


def compose_kernels(first: Tensor, second: Tensor) -> Tensor:
    """Merge two convolutions of stride 1 without padding between them into one of size ``k1 + k2 - 1``.

    ``W[o,i,c] = sum_t sum_{a+b=c} second[o,t,b] first[t,i,a]``: a true convolution of kernels, hence the flip.

    Shapes: ``first: [T, I, k1, k1]``, ``second: [O, T, k2, k2]``. Source: arXiv 2204.00826, section 3.3.
    """
    padding = second.shape[2] - 1
    return F.conv2d(first.transpose(0, 1), second.flip(2, 3), padding=padding).transpose(0, 1)
