"""Uniform quantization as pure functions of tensors."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class IntegerRange(NamedTuple):
    """The codes ``low..high`` that a quantizer may emit."""

    low: int
    high: int


def integer_range(bits: int, signed: bool) -> IntegerRange:
    """``[-2^(bits-1), 2^(bits-1) - 1]`` if signed, else ``[0, 2^bits - 1]`` (arXiv 1902.08153, section 2)."""
    return IntegerRange(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else IntegerRange(0, 2**bits - 1)


def quantize(values: Tensor, step: Tensor, codes: IntegerRange) -> Tensor:
    """``clip(round(values / step), low, high)``, integers in the dtype of ``values``; ties round to even."""
    return (values / step).round_().clamp_(codes.low, codes.high)


def dequantize(codes: Tensor, step: Tensor) -> Tensor:
    """``codes * step``."""
    return codes * step


class _LSQ(torch.autograd.Function):
    """The closed-form gradients of LSQ, without boolean masks: on a CPU those cost several times an arithmetic pass."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, step: Tensor, codes: IntegerRange, grad_scale: float) -> Tensor:
        ratio = values / step
        quantized = ratio.round().clamp_(codes.low, codes.high)
        ctx.save_for_backward(ratio, quantized)
        ctx.codes, ctx.grad_scale, ctx.step_shape = codes, grad_scale, step.shape
        return dequantize(quantized, step)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (grad,) = grads
        ratio, quantized = ctx.saved_tensors
        # The gradient where low < ratio < high, both ends excluded, else 0.
        inside = torch.ops.aten.hardtanh_backward(grad, ratio, *ctx.codes)
        # d(out)/d(step) is round(v/s) - v/s inside, the end of the range outside: the code, less the ratio if inside.
        per_value = (grad * quantized).addcmul_(inside, ratio, value=-1)
        return inside, per_value.sum_to_size(ctx.step_shape) * ctx.grad_scale, None, None


def lsq_fake_quantize(values: Tensor, step: Tensor, codes: IntegerRange, grad_scale: float = 1.0) -> Tensor:
    """Learned step size quantization: ``step * clip(round(values / step), low, high)``.

    Gradients: to ``values`` where ``low < values / step < high``, else 0; to ``step``
    ``grad_scale * (round(v/s) - v/s)`` inside, ``grad_scale * low`` or ``grad_scale * high`` where clipped.

    Shapes: ``step`` broadcasts against ``values``: a scalar, or ``[O, 1, 1, 1]`` for one step per output channel.
    Source: arXiv 1902.08153, eqs. 1-3 and 5. The order round-then-clip equals the paper's clip-then-round because the
    ends of the range are integers.
    """
    return _LSQ.apply(values, step, codes, grad_scale)
