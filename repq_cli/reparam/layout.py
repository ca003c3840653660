"""How a convolution lies over its input: channels, kernel, stride, padding, dilation, groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

Pair = tuple[int, int]  # rows, columns


class Side(NamedTuple):
    """A convolution along rows or columns: output ``t`` reads ``stride t - padding + dilation a`` for ``a < size``."""

    size: int
    stride: int
    padding: int
    dilation: int

    def out_size(self, extent: int) -> int:
        """How many outputs there are over so many inputs."""
        return (extent + 2 * self.padding - self.dilation * (self.size - 1) - 1) // self.stride + 1


class Layout:
    """What every convolution is laid out by; pairs are of rows and columns."""

    in_channels: int
    out_channels: int
    groups: int

    @property
    def sizes(self) -> Pair:
        """Taps of the kernel."""
        raise NotImplementedError

    @property
    def strides(self) -> Pair:
        """Input positions from one output position to the next."""
        raise NotImplementedError

    @property
    def paddings(self) -> Pair:
        """Zeros on both sides."""
        raise NotImplementedError

    @property
    def dilations(self) -> Pair:
        """Input positions from one tap to the next."""
        raise NotImplementedError

    def padding_of(self, kernel_size: Pair) -> Pair:
        """Padding (rows, columns) of a smaller, centred kernel; a negative one crops the input."""
        rows, columns = (
            padding - dilation * ((size - extent) // 2)
            for padding, dilation, size, extent in zip(
                self.paddings, self.dilations, self.sizes, kernel_size, strict=True
            )
        )
        return rows, columns

    def out_size(self, x: Tensor) -> Pair:
        """Rows and columns of the output for an input ``[B, I, H, W]``."""
        rows, columns = self.sides
        return rows.out_size(x.shape[2]), columns.out_size(x.shape[3])

    @property
    def sides(self) -> tuple[Side, Side]:
        """Along rows and along columns."""
        rows, columns = map(Side, self.sizes, self.strides, self.paddings, self.dilations)
        return rows, columns

    @property
    def weight_shape(self) -> torch.Size:
        """``[O, I/g, kh, kw]``."""
        return torch.Size([self.out_channels, self.in_channels // self.groups, *self.sizes])

    @property
    def depthwise(self) -> bool:
        """Whether every output channel reads one input channel."""
        return self.groups == self.in_channels > 1

    @property
    def keeps_shape(self) -> bool:
        """Whether the input itself may be added to the output (an identity branch)."""
        odd = all(size % 2 for size in self.sizes)
        return odd and self.strides == (1, 1) and self.padding_of((1, 1)) == (0, 0) and self._keeps_channels

    @property
    def _keeps_channels(self) -> bool:
        return self.in_channels == self.out_channels


@dataclass(frozen=True)
class Geometry(Layout):
    """The convolution that a block of repq's own merges into: a square, odd kernel, dilation 1."""

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

    @property
    def sizes(self) -> Pair:
        return self.kernel_size, self.kernel_size

    @property
    def strides(self) -> Pair:
        return self.stride, self.stride

    @property
    def paddings(self) -> Pair:
        return self.padding, self.padding

    @property
    def dilations(self) -> Pair:
        return 1, 1


@dataclass(frozen=True)
class Rectangle(Layout):
    """Any convolution that torch pads with as many zeros on both sides."""

    in_channels: int
    out_channels: int
    sizes: Pair = (1, 1)
    strides: Pair = (1, 1)
    paddings: Pair = (0, 0)
    dilations: Pair = (1, 1)
    groups: int = 1


def alike(pair: Pair) -> int | Pair:
    """One number where both are it: what torch, and files, make of a square.

    >>> alike((3, 3)), alike((1, 3))
    (3, (1, 3))
    """
    return pair[0] if pair[0] == pair[1] else pair
