"""Pure transforms of a linear map ``(weight, bias)``. Everything here is differentiable and keeps no state."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


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
    multiplier = gamma / torch.sqrt(var + eps)
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


def identity_kernel(channels: int, groups: int, like: Tensor) -> Tensor:
    """The 1x1 kernel that copies its input: ``E[o, o mod (channels/groups)] = 1``, shape ``[C, C/g, 1, 1]``."""
    width = channels // groups
    rows = torch.eye(width, dtype=like.dtype, device=like.device).repeat(groups, 1)
    return rows.view(channels, width, 1, 1)


def add_kernels(kernels: Iterable[Kernel], kernel_size: int) -> Kernel:
    """Merge parallel convolutions: the sum of their centred weights and of their biases."""
    weights, biases = zip(*((pad_kernel(weight, kernel_size), bias) for weight, bias in kernels), strict=True)
    return Kernel(sum(weights[1:], weights[0]), sum(biases[1:], biases[0]))
