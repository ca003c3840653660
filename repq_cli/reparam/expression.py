"""A branch that is any expression of linear operations, as foreign networks have them between two tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from repq_cli.precision import full_precision
from repq_cli.reparam.affine import (
    Affine,
    NoConvolution,
    added,
    placed_in,
    scaled,
    shifted,
    source,
    then_convolve,
    then_norm,
)
from repq_cli.reparam.algebra import Kernel
from repq_cli.reparam.branch import Branch, kernel_of, without_bias
from repq_cli.reparam.layout import Layout, Pair, Rectangle
from repq_cli.reparam.statistics import Statistics

SOURCE = "x"


class Step(NamedTuple):
    """One operation: a part of the expression, or ``add`` and ``sub`` of two earlier steps; ``x`` is the input."""

    name: str
    operation: str
    inputs: tuple[str, ...]


class _PerChannel(nn.Module):
    """``constant()`` gives a tensor with one element, or one for each channel: ``[C, 1, 1]`` or ``[1, C, 1, 1]``."""

    def __init__(self, constant: nn.Module | float) -> None:
        super().__init__()
        self.constant = constant

    def value(self, like: Tensor) -> Tensor:
        """The constant, of one element or of the channels."""
        if isinstance(self.constant, nn.Module):
            return self.constant().reshape(-1)
        return torch.full((1,), float(self.constant), dtype=like.dtype, device=like.device)

    def _against(self) -> Tensor | float:
        constant = self.constant
        return constant().reshape(-1, 1, 1) if isinstance(constant, nn.Module) else constant


class Scale(_PerChannel):
    """``constant[c] * x``."""

    def forward(self, x: Tensor) -> Tensor:
        return x * self._against()


class Shift(_PerChannel):
    """``x + constant[c]``."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self._against()


class ExpressionBranch(Branch):
    """Steps over parts, each of which is linear; the last step is the branch.

    Its parts are the modules that they were, in any of the kinds that ``applied`` knows.
    """

    like: Tensor  # has the block's device and dtype, where there is no parameter to ask

    def __init__(self, channels: int, parts: Mapping[str, nn.Module], steps: Sequence[Step]) -> None:
        super().__init__()
        self.channels, self.parts, self.steps = channels, nn.ModuleDict(parts), tuple(steps)
        self.register_buffer("like", torch.zeros(0), persistent=False)
        self.geometry: Layout | None = None  # the block's, once it is known

    def forward(self, x: Tensor) -> Tensor:
        values = {SOURCE: x}
        for name, operation, inputs in self.steps:
            first, *others = (values[source] for source in inputs)
            if operation in self.parts:
                values[name] = self.parts[operation](first)
            else:
                values[name] = first + others[0] if operation == "add" else first - others[0]
        return values[self.steps[-1].name]

    def affine(self, statistics: Statistics) -> Affine:
        """The expression as one convolution of its input. Raises NoConvolution where it is none."""
        return self.affines(statistics)[self.steps[-1].name]

    def affines(self, statistics: Statistics) -> dict[str, Affine]:
        """Each step as one convolution of the expression's input."""
        values = {SOURCE: source(self.channels, self._like())}
        for name, operation, inputs in self.steps:
            first, *others = (values[source] for source in inputs)
            if operation in self.parts:
                values[name] = applied(self.parts[operation], first, statistics)
            else:
                values[name] = added(first, others[0], 1 if operation == "add" else -1)
        return values

    def merged(self, statistics: Statistics) -> Kernel:
        assert self.geometry is not None
        with full_precision():
            return placed_in(self.affine(statistics), self.geometry)

    def _like(self) -> Tensor:
        return next(self.parameters(), self.like)


def applied(part: nn.Module, first: Affine, statistics: Statistics) -> Affine:
    """``part`` behind ``first``. Raises NoConvolution for what is not linear, or not the same at the border."""
    match part:
        case nn.Conv2d():
            return then_convolve(first, kernel_of(part), layout_of(part), part.bias is not None)
        case nn.BatchNorm2d():
            return then_norm(first, part, statistics)
        case nn.AvgPool2d():
            layout = _layout_of_average(part, first.weight.shape[0])
            taps = 1 / (layout.sizes[0] * layout.sizes[1])
            weight = torch.full(layout.weight_shape, taps, dtype=first.weight.dtype, device=first.weight.device)
            return then_convolve(first, without_bias(weight), layout, False)
        case nn.ZeroPad2d():
            left, _, top, _ = part.padding
            channels = first.weight.shape[0]
            layout = Rectangle(channels, channels, paddings=(top, left), groups=channels)
            ones = torch.ones(layout.weight_shape, dtype=first.weight.dtype, device=first.weight.device)
            return then_convolve(first, without_bias(ones), layout, False)
        case Scale():
            return scaled(first, part.value(first.bias))
        case Shift():
            return shifted(first, part.value(first.bias))
        case nn.Identity():
            return first
    raise NoConvolution(f"{type(part).__name__} is not linear")


def layout_of(conv: nn.Conv2d) -> Layout:
    """How a convolution of torch's lies over its input. Raises NoConvolution where it pads unequally, or no zeros."""
    sizes, strides, dilations = _two(conv.kernel_size), _two(conv.stride), _two(conv.dilation)
    if isinstance(conv.padding, str):
        around = [(size - 1) * step for size, step in zip(sizes, dilations, strict=True)]
        if conv.padding == "same" and any(total % 2 for total in around):
            raise NoConvolution("it pads one side more than the other")
        paddings = (around[0] // 2, around[1] // 2) if conv.padding == "same" else (0, 0)
    else:
        paddings = _two(conv.padding)
    if conv.padding_mode != "zeros" and any(paddings):
        raise NoConvolution(f"it pads by {conv.padding_mode}")
    return Rectangle(conv.in_channels, conv.out_channels, sizes, strides, paddings, dilations, conv.groups)


def _layout_of_average(pool: nn.AvgPool2d, channels: int) -> Layout:
    sizes = _two(pool.kernel_size)
    layout = Rectangle(channels, channels, sizes, _two(pool.stride), _two(pool.padding), groups=channels)
    counts_zeros = pool.count_include_pad or not any(layout.paddings)
    if pool.ceil_mode or not counts_zeros or pool.divisor_override not in (None, sizes[0] * sizes[1]):
        raise NoConvolution("its averages are of unequal numbers at the border")
    return layout


def _two(numbers: int | tuple[int, ...]) -> Pair:
    rows, columns = (numbers, numbers) if isinstance(numbers, int) else numbers
    return rows, columns
