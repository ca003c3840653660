"""Pure transforms of a linear map ``(weight, bias)``. Everything here is differentiable and keeps no state."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from repq_cli import strided_points
from repq_cli.batch_norm import norm_multiplier
from repq_cli.reparam.layout import Geometry as Geometry
from repq_cli.reparam.layout import Layout, Pair


class Kernel(NamedTuple):
    """A convolution's parameters: weight ``[O, I/g, kh, kw]`` and bias ``[O]``."""

    weight: Tensor
    bias: Tensor


def fold_batch_norm(kernel: Kernel, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor, eps: float) -> Kernel:
    """Absorb the batch norm that follows a convolution.

    ``t = gamma / sqrt(var + eps)``, ``weight' = weight * t``, ``bias' = beta + (bias - mean) * t``.

    Shapes: ``gamma, beta, mean, var: [O]``; ``mean`` and ``var`` describe the convolution's output *with* its bias.
    Source: arXiv 2101.03697, eq. 3.
    """
    multiplier = norm_multiplier(gamma, var, eps)
    weight = kernel.weight * multiplier.view(-1, 1, 1, 1)
    return Kernel(weight, beta + (kernel.bias - mean) * multiplier)


def pad_input(x: Tensor, padding: Pair) -> Tensor:
    """Zero-pad (or, where negative, crop) rows and columns of ``[B, C, H, W]`` on both sides."""
    rows, columns = padding
    return F.pad(x, (columns, columns, rows, rows))


def pad_kernel(weight: Tensor, sizes: Pair) -> Tensor:
    """Zero-pad ``[O, I, kh, kw]`` around its centre to ``[O, I, *sizes]``; what is added is even."""
    rows, columns = ((size - extent) // 2 for size, extent in zip(sizes, weight.shape[2:], strict=True))
    return F.pad(weight, (columns, columns, rows, rows)) if rows or columns else weight


class Window(NamedTuple):
    """How ``conv2d`` is to walk over its input: its last four arguments."""

    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int


def window_over(x: Tensor, weight: Tensor, geometry: Layout) -> tuple[Tensor, Window]:
    """``x``, cropped where a small kernel sits in a large, unpadded one, and how a centred kernel walks over it.

    Where a stride is not safe (``strided_points``), ``x`` is thinned to what the kernel sees instead.
    """
    if strided_points.is_unsafe(x, weight, geometry.strides):
        return seen_by_point(x, geometry), Window((1, 1), (0, 0), (1, 1), geometry.groups)
    rows, columns = geometry.padding_of((weight.shape[2], weight.shape[3]))
    padding = (max(rows, 0), max(columns, 0))
    if (rows, columns) != padding:
        x = pad_input(x, (min(rows, 0), min(columns, 0)))
    return x, Window(geometry.strides, padding, geometry.dilations, geometry.groups)


def convolve(x: Tensor, weight: Tensor, geometry: Layout, bias: Tensor | None = None) -> Tensor:
    """``x * weight + bias``, for a weight of the geometry's size or a smaller one in its centre."""
    x, window = window_over(x, weight, geometry)
    return F.conv2d(x, weight, bias, *window)


def seen_by_point(x: Tensor, geometry: Layout) -> Tensor:
    """What a centred 1x1 kernel reads of ``x``, position by position of the output: ``x`` itself where it may."""
    return strided_points.thinned(x, geometry.padding_of((1, 1)), geometry.strides)


def identity_kernel(channels: int, groups: int, like: Tensor, rows: int | None = None) -> Tensor:
    """The 1x1 kernel that copies its input: ``E[o, o mod (channels/groups)] = 1``, shape ``[rows, channels/g, 1, 1]``.

    ``rows`` (a multiple of ``channels / groups``) beyond ``channels``, its default, copy the same inputs again.
    """
    width = channels // groups
    identities = like.new_zeros((rows or channels) // width, width, width)
    identities.diagonal(dim1=1, dim2=2).fill_(1)  # torch.eye of the device meta would import torch's compiler
    return identities.view(-1, width, 1, 1)


def add_kernels(kernels: Iterable[Kernel], sizes: Pair) -> Kernel:
    """Merge parallel convolutions: the sum of their centred weights and of their biases."""
    weights, biases = zip(*((pad_kernel(weight, sizes), bias) for weight, bias in kernels), strict=True)
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
