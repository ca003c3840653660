"""First and second moments of an activation tensor, in one pass forward and one backward."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class PowerSums(NamedTuple):
    """``sum x`` and ``sum x^2`` over the batch ``[1, C, H, W]``, or over batch and positions ``[1, C, 1, 1]``."""

    first: Tensor
    second: Tensor


class _PowerSums(torch.autograd.Function):
    """``grad_x = a + 2 x b`` with the gradients ``a, b`` of the two sums: one pass, where autograd would take four."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x)
        return _power_sums(x, dims)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        to_first, to_second = (grad.contiguous() for grad in grads)  # small, and then in the order of x
        return torch.addcmul(to_first, x, to_second, value=2).to(x.dtype), None


def _power_sums(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    if x.is_cuda:  # squares and adds without storing the squares, which is slow on a CPU
        norm = torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=_summing_dtype(x))
        return x.sum(dims, keepdim=True, dtype=_summing_dtype(x)), norm.square()
    values = x.to(_summing_dtype(x))
    return values.sum(dims, keepdim=True), values.square().sum(dims, keepdim=True)


def _summing_dtype(x: Tensor) -> torch.dtype:
    return x.dtype if x.dtype == torch.float64 else torch.float32


def power_sums(x: Tensor, by_position: bool = True) -> PowerSums:
    """``sum_b x`` and ``sum_b x^2`` of ``x: [B, C, H, W]``, in float32 where ``x`` has fewer bits.

    Channels-last tensors are summed and differentiated in their own order of memory. Under ``torch.compile`` these are
    two plain sums, which the compiler fuses with what is in front of them.
    by_position: keep a sum for each position, else one for each channel.
    """
    dims = (0,) if by_position else (0, 2, 3)
    if torch.compiler.is_compiling():
        values = x.to(_summing_dtype(x))
        return PowerSums(values.sum(dims, keepdim=True), values.square().sum(dims, keepdim=True))
    if not by_position or x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return PowerSums(*_PowerSums.apply(x, dims))
    first, second = _PowerSums.apply(x.permute(0, 2, 3, 1), dims)
    return PowerSums(first.permute(0, 3, 1, 2), second.permute(0, 3, 1, 2))
