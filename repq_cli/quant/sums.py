"""Convolutions and products of integer codes, scaled afterwards, so that no rounding decides what integers decide.

A sum of codes is an integer, and float32 holds all of them up to ``2**24``: below that a sum is exact, in any order and
on any device, and zero where it is zero. A sum of values, codes times steps, would be some -2e-8 there, whose sign is
another. Larger sums, which only layers with 8-bit codes on both sides can have (of 514 products and more), are rounded
as sums of values are. So are shortcuts, whose addends have scales of their own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from repq_cli import strided_points
from repq_cli.quant.learned_steps import Origin, origin_of
from repq_cli.quant.windows import Window, pair, turned


class Steps(NamedTuple):
    """What the codes of a layer's input and of its weight are worth, in shapes that broadcast against them."""

    x: Tensor
    weight: Tensor


def codes_of(values: Tensor, step: Tensor) -> Tensor:
    """The integers, counted from zero, of values that are multiples of ``step`` up to rounding."""
    return (values / step).round_()


def weighted_sums(x: Tensor, weight: Tensor, bias: Tensor | None, window: Window | None) -> Tensor:
    """The convolution, of a weight ``[O, I/g, kh, kw]``, or the matrix product where there is no window."""
    x, window = _safe(x, weight, window)
    if window is None:
        return F.linear(x, weight, bias)
    if window.output_padding is None:
        return F.conv2d(x, weight, bias, window.stride, window.padding, window.dilation, window.groups)
    sizes = window.stride, window.padding, window.output_padding
    return F.conv_transpose2d(x, turned(weight, window.groups), bias, *sizes, window.groups, window.dilation)


def _safe(x: Tensor, weight: Tensor, window: Window | None) -> tuple[Tensor, Window | None]:
    """The same convolution, with a gradient that keeps to its memory."""
    if window is None or window.output_padding is not None:
        return x, window
    strides, padding = pair(window.stride), pair(window.padding)
    if not strided_points.is_unsafe(x, weight, strides):
        return x, window
    return strided_points.thinned(x, padding, strides), window._replace(stride=1, padding=0)


def sums_of_codes(x: Tensor, weight: Tensor, bias: Tensor | None, window: Window | None) -> Tensor:
    """``weighted_sums`` of integers, exactly: a GPU may multiply by Winograd's fractions, off by 1e-5."""
    sums = weighted_sums(x, weight, bias, window)
    return sums.round_() if sums.is_cuda else sums


def per_channel(values: Tensor, like: Tensor) -> Tensor:
    """``[O]`` in a shape that broadcasts against ``[B, O, ...]``."""
    return values.view(-1, *[1] * (like.dim() - 2))


class _SumsOfMade(torch.autograd.Function):
    """``weighted_sums`` that makes its input again in backward instead of storing it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, origin: Origin, window: Window) -> Tensor:
        ctx.save_for_backward(origin.values, origin.step, origin.zero_point, weight)
        ctx.codes, ctx.window, ctx.bias_shape = origin.codes, window, None if bias is None else list(bias.shape)
        return weighted_sums(x, weight, bias, window)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values, step, zero_point, weight = ctx.saved_tensors
        x = Origin(values, step, zero_point, ctx.codes).made()
        return *_gradients(grads[0], x, weight, ctx), None, None


def sums_in_training(x: Tensor, weight: Tensor, bias: Tensor | None, window: Window | None) -> Tensor:
    """``weighted_sums``, with the same gradients, that stores no input for them where LSQ can make it again.

    A compiler decides that by itself.
    """
    x, window = _safe(x, weight, window)
    origin = None if window is None or torch.compiler.is_compiling() else origin_of(x)
    if origin is None or window is None:
        return weighted_sums(x, weight, bias, window)
    return _SumsOfMade.apply(x, weight, bias, origin, window)


class _ScaledSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, steps: Steps, window: Window | None
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.window, ctx.bias_shape = window, None if bias is None else list(bias.shape)
        y = sums_of_codes(codes_of(x, steps.x), codes_of(weight, steps.weight), None, window)
        y.mul_(per_channel(steps.weight.flatten() * steps.x, y))
        return y if bias is None else y.add_(per_channel(bias, y))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        return *_gradients(grads[0], x, weight, ctx), None, None


def _gradients(grad: Tensor, x: Tensor, weight: Tensor, ctx: Any) -> tuple[Tensor | None, ...]:
    """Those of ``weighted_sums`` to ``x``, ``weight`` and bias, where they are wanted."""
    wanted = ctx.needs_input_grad[:3]
    if ctx.window is None:
        return grad @ weight, grad.T @ x, grad.sum(0) if wanted[2] else None
    stride, padding, groups, dilation, more = ctx.window
    transposed = more is not None
    geometry = (pair(stride), pair(padding), pair(dilation), transposed, pair(more or 0), groups)
    x, weight = x.to(grad.dtype), weight.to(grad.dtype)  # under autocast sums are of lower precision than both
    weight = turned(weight, groups) if transposed else weight
    found = torch.ops.aten.convolution_backward(grad, x, weight, ctx.bias_shape, *geometry, wanted)
    return (found[0], turned(found[1], groups), found[2]) if transposed and wanted[1] else found


def scaled_sums(x: Tensor, weight: Tensor, bias: Tensor | None, steps: Steps, window: Window | None) -> Tensor:
    """``weighted_sums`` of fake-quantized tensors, as sums of their codes; the gradients are those of the values."""
    x, window = _safe(x, weight, window)
    return _ScaledSums.apply(x, weight, bias, steps, window)
