"""Quantization as pure functions of tensors: uniform, affine, binary and ternary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from repq_cli.precision import in_float32

SMALLEST_STEP = 1e-8


class IntegerRange(NamedTuple):
    """The codes ``low..high`` that a quantizer may emit."""

    low: int
    high: int


class Grid(NamedTuple):
    """Where codes lie: ``value = (code - zero_point) * step``; both broadcast against the codes, no zero_point is 0."""

    step: Tensor
    zero_point: Tensor | None = None

    def from_zero(self, codes: Tensor) -> Tensor:
        """Codes counted from the one of zero."""
        return codes if self.zero_point is None else codes - self.zero_point

    def dequantize(self, codes: Tensor) -> Tensor:
        """The values of integer codes."""
        return self.from_zero(codes) * self.step


def integer_range(bits: int, signed: bool, symmetric: bool = False) -> IntegerRange:
    """``[-2^(bits-1), 2^(bits-1) - 1]`` if signed, else ``[0, 2^bits - 1]`` (arXiv 1902.08153, section 2).

    ``symmetric``: without the lowest signed code, so that two bits are ``{-1, 0, 1}``.
    """
    if not signed:
        return IntegerRange(0, 2**bits - 1)
    return IntegerRange(-(2 ** (bits - 1)) + symmetric, 2 ** (bits - 1) - 1)


def quantize(values: Tensor, grid: Grid, codes: IntegerRange) -> Tensor:
    """``clip(round(values / step) + zero_point, low, high)``, integers in the dtype of ``values``; ties go to even."""
    rounded = (in_float32(values) / grid.step).round_()
    if grid.zero_point is not None:
        rounded.add_(grid.zero_point)
    return rounded.clamp_(codes.low, codes.high).to(values.dtype)


def offset_zero_point(offset: Tensor, step: Tensor, codes: IntegerRange) -> Tensor:
    """The code of zero, ``clip(round(-offset / step), low, high)``."""
    return (-offset / step).round().clamp(codes.low, codes.high)


def nudged_grid(low: Tensor, high: Tensor, codes: IntegerRange) -> Grid:
    """The grid of all codes over ``[low, high]``, widened to hold zero and shifted so that zero is a code exactly.

    ``step = (high - low) / (codes.high - codes.low)``, ``zero_point = clip(round(codes.low - low / step))``.
    Source: arXiv 1712.05877, section 3.1 and eqs. 12-13. An empty range (all values zero) gets the smallest step.
    """
    low, high = low.clamp_max(0), high.clamp_min(0)
    step = ((high - low) / (codes.high - codes.low)).clamp_min(SMALLEST_STEP)
    return Grid(step, (codes.low - low / step).round().clamp(codes.low, codes.high))


def affine_fake_quantize(values: Tensor, grid: Grid, codes: IntegerRange) -> Tensor:
    """``(quantize(values) - zero_point) * step``; the gradient passes where ``values`` lie within the codes' range.

    The range itself is observed, not learned (arXiv 1712.05877, section 3.1).
    """
    low, high = grid.dequantize(values.new_tensor(codes.low)), grid.dequantize(values.new_tensor(codes.high))
    inside = (values >= low) & (values <= high)
    return _straight_through(values, grid.dequantize(quantize(values, grid, codes)), inside)


def binarize(values: Tensor) -> Tensor:
    """``+1`` where ``values >= 0``, else ``-1``: zero has a sign here, unlike in ``torch.sign``."""
    return values.ge(0).to(values.dtype).mul_(2).sub_(1)


def stochastic_binarize(values: Tensor, certain: float = 1.0, draw: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """``+1`` with probability ``clip((values / certain + 1) / 2, 0, 1)``, else ``-1`` (arXiv 1602.02830, eqs. 2-3).

    draw: numbers in [0, 1) for tensors like ``values``; by default ``torch.rand_like``.
    """
    return binarize((values / certain + 1) / 2 - (draw or torch.rand_like)(values))


def binary_fake_quantize(
    values: Tensor,
    bound: float | None = None,
    certain: float | None = None,
    draw: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """``binarize`` with a straight-through gradient: where ``|values| <= bound``, or everywhere without one.

    ``bound=1`` is the gradient of hard tanh (arXiv 1602.02830, eq. 4). ``certain``: signs are drawn at random instead,
    by ``draw``, those of magnitudes from here on excepted.
    """
    codes = binarize(values) if certain is None else stochastic_binarize(values, certain, draw)
    return _straight_through(values, codes, None if bound is None else values.abs() <= bound)


def lsq_binary_fake_quantize(values: Tensor, step: Tensor, grad_scale: float = 1.0) -> Tensor:
    """``step * sign(values)``: what signed LSQ becomes at one bit, where its highest code would be 0.

    Gradients: to ``values`` where ``|values| <= step``, else 0; to ``step`` ``grad_scale * sign(values)``.
    """
    inside = values.abs() <= step
    return scale_gradient(step, grad_scale) * _straight_through(values / step.detach(), binarize(values), inside)


def mean_magnitude(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    """``mean |values|`` over ``dims``, kept as ones: the step of least squared error for ``{-1, 1}``."""
    return values.abs().mean(dims, keepdim=True).clamp_min(SMALLEST_STEP)


def scaled_binary_fake_quantize(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    """``alpha * sign(values)`` with ``alpha = mean |values|`` over ``dims`` (arXiv 1603.05279, eqs. 4-6).

    Gradient, with g that of the output: ``alpha g 1[|v| <= 1] + sign(v) sum(g sign(v)) / n``: the exact chain rule,
    where the paper's own first term, eq. 8, is an approximation.
    """
    return mean_magnitude(values, dims) * binary_fake_quantize(values, bound=1.0)


def input_scale(values: Tensor, shape: torch.Size, stride: int, padding: int) -> Tensor:
    """XNOR-Net's K for an input ``[B, I, H, W]`` and a weight of ``shape [O, I/g, k, k]``: ``[B, O or 1, Ho, Wo]``.

    ``mean_i |values_i|`` over the channels of a group, under a box of ``1 / k^2``; padded with zeros. Source: arXiv
    1603.05279, section 3.2. Differs from the paper in what ``values`` are here: those behind hard tanh, at most 1.
    """
    groups = values.shape[1] // shape[1]
    magnitude = values.abs().unflatten(1, (groups, shape[1])).mean(2)
    scale = F.avg_pool2d(magnitude, shape[-1], stride, padding)
    return scale if groups == 1 else scale.repeat_interleave(shape[0] // groups, 1)


def ternarize(values: Tensor, threshold: float, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Codes in ``{-1, 0, 1}`` and their step.

    ``delta = threshold * mean |values|``; the code is ``sign(values)`` where ``|values| > delta``, else 0; the step is
    the mean of those magnitudes (arXiv 1605.04711, eqs. 4-6). Means are over ``dims``.
    """
    magnitude = values.abs()
    beyond = (magnitude > threshold * magnitude.mean(dims, keepdim=True)).to(values.dtype)
    step = (magnitude * beyond).sum(dims, keepdim=True) / beyond.sum(dims, keepdim=True).clamp_min(1)
    return values.sign() * beyond, step.clamp_min(SMALLEST_STEP)


def ternary_fake_quantize(values: Tensor, threshold: float, dims: tuple[int, ...]) -> Tensor:
    """``ternarize`` times its step; the gradient passes unchanged (arXiv 1605.04711, section 2.4)."""
    codes, step = ternarize(values.detach(), threshold, dims)
    return _straight_through(values, codes * step)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, quantized: Tensor, inside: Tensor | None) -> Tensor:
        ctx.inside = inside
        return quantized.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        return (grad if ctx.inside is None else grad * ctx.inside), None, None


def _straight_through(values: Tensor, quantized: Tensor, inside: Tensor | None = None) -> Tensor:
    """``quantized``, with the gradient of ``values`` where ``inside``."""
    if torch.compiler.is_compiling():  # in operations that it sees through: a zero with that gradient is added
        zero = values - values.detach()
        return quantized.detach() + (zero if inside is None else zero * inside)
    return _StraightThrough.apply(values, quantized, inside)


def scale_gradient(values: Tensor, factor: float) -> Tensor:
    """``values``, with ``factor`` times their gradient: a zero that has it is added."""
    constant = values.detach()
    return constant + (values - constant) * factor
