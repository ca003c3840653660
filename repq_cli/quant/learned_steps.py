"""LSQ and LSQ+: fake quantization whose step, and offset, are learned."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from repq_cli.precision import in_float32
from repq_cli.quant.functional import Grid, IntegerRange, offset_zero_point, quantize, scale_gradient


def lsq_fake_quantize(values: Tensor, step: Tensor, codes: IntegerRange, grad_scale: float = 1.0) -> Tensor:
    """Learned step size quantization: ``step * clip(round(values / step), low, high)``.

    Gradients: to ``values`` where ``low < values / step < high``, else 0; to ``step``
    ``grad_scale * (round(v/s) - v/s)`` inside, ``grad_scale * low`` or ``grad_scale * high`` where clipped.

    Shapes: ``step`` broadcasts against ``values``: a scalar, or ``[O, 1, 1, 1]`` for one step per output channel.
    Source: arXiv 1902.08153, eqs. 1-3 and 5. The order round-then-clip equals the paper's clip-then-round because the
    ends of the range are integers.
    """
    if torch.compiler.is_compiling():
        return _in_plain_operations(values, step, None, codes, grad_scale)
    return _LSQ.apply(values, step, None, codes, grad_scale)


def lsq_plus_fake_quantize(
    values: Tensor, step: Tensor, offset: Tensor, codes: IntegerRange, grad_scale: float = 1.0
) -> Tensor:
    """LSQ with a learned offset: ``step * clip(round((values - offset) / step), low, high) + offset``.

    Gradients: to ``values`` and ``step`` as in LSQ for ``values - offset``; to ``offset`` ``grad_scale`` where clipped,
    else 0, and none that would move zero beyond the first or the last code. Source: arXiv 2004.09576, eqs. 1-4.
    Differs from the paper: the offset is rounded to a multiple of the step (``offset_zero_point``), so that zero, and
    with it the padding of a convolution, is a code.
    """
    if torch.compiler.is_compiling():
        return _in_plain_operations(values, step, offset, codes, grad_scale)
    return _LSQ.apply(values, step, offset, codes, grad_scale)


def _in_plain_operations(
    values: Tensor, step: Tensor, offset: Tensor | None, codes: IntegerRange, grad_scale: float
) -> Tensor:
    """The same for a compiler, which fuses what it can see through: equal bit for bit, with the same gradients.

    Codes are ``clip(u)``, whose gradient is 1 where ``low < u < high``, plus the constant that rounds it. Their
    difference is exact (Sterbenz), and so is the sum.
    """
    zero_point = None if offset is None else offset_zero_point(offset, step, codes).detach()
    grid = Grid(scale_gradient(step, grad_scale), zero_point)
    unrounded = in_float32(values) / grid.step
    if zero_point is None:
        clipped = F.hardtanh(unrounded, *codes)
        rounded = clipped.round()
    else:
        rounded = (unrounded.round() + zero_point).clamp(*codes)
        unrounded = unrounded + zero_point
        clipped = F.hardtanh(unrounded, *codes)
    quantized = grid.dequantize(clipped + (rounded - clipped).detach())
    if offset is not None and zero_point is not None:
        # Where clipped the output follows the offset, of which the zero point times the step is no part there: a zero
        # with these gradients.
        moved = _Inward.apply(offset - offset.detach(), zero_point, codes, grad_scale)
        moved = moved + zero_point * (grid.step - grid.step.detach())
        quantized = quantized + moved * ((unrounded <= codes.low) | (unrounded >= codes.high))
    return quantized.to(values.dtype)


class _Inward(torch.autograd.Function):
    """A scalar, with its gradient scaled and then ``inward``."""

    @staticmethod
    def forward(ctx: Any, offset: Tensor, zero_point: Tensor, codes: IntegerRange, grad_scale: float) -> Tensor:
        ctx.save_for_backward(zero_point)
        ctx.codes, ctx.grad_scale = codes, grad_scale
        return offset.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (zero_point,) = ctx.saved_tensors
        return inward(grads[0] * ctx.grad_scale, zero_point, ctx.codes), None, None, None


class Origin(NamedTuple):
    """What a fake-quantized tensor was made of: enough to make it again, bit for bit.

    A convolution that stores this instead of its input stores nothing: ``values`` are what the layer before it keeps.
    """

    values: Tensor
    step: Tensor
    zero_point: Tensor | None
    codes: IntegerRange

    def made(self) -> Tensor:
        """The tensor, in the dtype and the memory layout of ``values``."""
        quantized = quantize(in_float32(self.values), Grid(self.step, self.zero_point), self.codes)
        if self.zero_point is not None:
            quantized.sub_(self.zero_point)
        return quantized.mul_(self.step).to(self.values.dtype)


def origin_of(x: Tensor) -> Origin | None:
    """Where LSQ has just made ``x`` in training, of what; None for any other tensor."""
    if not isinstance(x.grad_fn, _LSQ._backward_cls):
        return None
    context: Any = x.grad_fn  # what ``forward`` has left
    values, step, zero_point = context.saved_tensors
    return Origin(values, step, zero_point, context.codes)


class _LSQ(torch.autograd.Function):
    """The closed-form gradients of LSQ and LSQ+, in few passes over memory and with nothing stored for them.

    With codes ``q`` and unrounded codes ``u = values / step + zero_point``: the gradient passes where
    ``low < u < high``; there the output moves by ``q - u`` per step and not at all with the offset, elsewhere by ``q``
    and by 1. Both are computed again in backward.
    """

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, step: Tensor, offset: Tensor | None, codes: IntegerRange, grad_scale: float
    ) -> Tensor:
        zero_point = None if offset is None else offset_zero_point(offset, step, codes)
        ctx.save_for_backward(values, step, zero_point)
        ctx.codes, ctx.grad_scale = codes, grad_scale
        return Origin(values, step, zero_point, codes).made()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values, step, zero_point = ctx.saved_tensors
        codes: IntegerRange = ctx.codes
        grad, unrounded = in_float32(_laid_out_like(values, grads[0])), in_float32(values) / step
        if zero_point is not None:
            unrounded.add_(zero_point)
        # The gradient where low < u < high, both ends excluded, else 0; boolean masks would cost several passes more.
        inside = torch.ops.aten.hardtanh_backward(grad, unrounded, *codes)
        if step.dim() > 0:
            per_value = inside * unrounded
            per_value = per_value.addcmul_(grad, _rounded(unrounded, ctx), value=-1)
            to_step = per_value.sum_to_size(step.shape).neg_()
        else:  # two inner products, which write nothing: some digits cancel, as they do in autograd's own sums
            to_step = -_inner_product(inside, unrounded)
            to_step += _inner_product(grad, _rounded(unrounded, ctx))
        to_step, to_values = to_step * ctx.grad_scale, inside.to(values.dtype)
        if zero_point is None:
            return to_values, to_step, None, None, None
        to_offset = (grad.sum() - inside.sum()) * ctx.grad_scale
        return to_values, to_step, inward(to_offset, zero_point, codes), None, None


def _rounded(unrounded: Tensor, ctx: Any) -> Tensor:
    """The codes; they take the place of ``unrounded`` where that can be rounded itself: without a zero point in it."""
    values, step, zero_point = ctx.saved_tensors
    if zero_point is None:
        return unrounded.round_().clamp_(*ctx.codes)
    return quantize(in_float32(values), Grid(step, zero_point), ctx.codes)


def inward(to_offset: Tensor, zero_point: Tensor, codes: IntegerRange) -> Tensor:
    """An offset's gradient; 0 where zero is the first or the last code already and would only be pushed outwards."""
    outward = ((zero_point <= codes.low) & (to_offset < 0)) | ((zero_point >= codes.high) & (to_offset > 0))
    return to_offset.masked_fill(outward, 0)


def _laid_out_like(values: Tensor, grad: Tensor) -> Tensor:
    """``grad`` in the memory layout of ``values``: two layouts in one operation cost several times its time."""
    return grad if grad.stride() == values.stride() else torch.empty_like(values, dtype=grad.dtype).copy_(grad)


def _inner_product(a: Tensor, b: Tensor) -> Tensor:
    """``sum a b`` of two tensors of one layout."""
    if a.dim() == 4 and a.is_contiguous(memory_format=torch.channels_last):
        a, b = a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)
    return torch.dot(a.reshape(-1), b.reshape(-1))
