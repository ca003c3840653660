"""Batch norm whose statistics are those of the whole batch, where several ranks hold it.

torch's own, SyncBatchNorm, is for GPUs alone; this one is plain operations, on any device.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from repq_cli import collective
from repq_cli.batch_norm import norm_multiplier
from repq_cli.precision import in_float32


def share_norms(net: nn.Module) -> None:
    """Have the batch norms of ``net``, in place, look at the whole batch inside ``collective.sharing``."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and not isinstance(module, SharedNorm):
            module.__class__ = _shared_kind(type(module))  # type: ignore[arg-type]


@functools.cache
def _shared_kind(kind: Any) -> Any:
    return type(f"Shared{kind.__name__}", (SharedNorm, kind), {})


class SharedNorm(nn.modules.batchnorm._BatchNorm):
    """``gamma (x - mean) / sqrt(var + eps) + beta`` with mean and biased variance of all ranks' images."""

    def forward(self, x: Tensor) -> Tensor:
        """As ``nn.BatchNorm``'s, which it is where nobody shares the batch."""
        if not (self.training and collective.is_shared()):
            return super().forward(x)
        assert self.running_mean is not None
        y, mean, var = _Normalised.apply(x, self.weight, self.bias, collective.as_it_is(self.running_mean), self.eps)
        self._update_running(x, mean, var)
        return y

    @torch.no_grad()
    def _update_running(self, x: Tensor, mean: Tensor, var: Tensor) -> None:
        count = _count(x)
        if count < 2:
            raise ValueError(f"Batch statistics need more than one value per channel, but {tuple(x.shape)} gives one.")
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
        self.num_batches_tracked.add_(1)


def _count(x: Tensor) -> int:
    """Values per channel on all ranks."""
    return collective.images_of_all(x.shape[0]) * x.shape[2:].numel()


def _dims(x: Tensor) -> list[int]:
    return [0, *range(2, x.dim())]


def _by_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (x.dim() - 2))


class _Normalised(torch.autograd.Function):
    """With ``n`` values per channel, ``u = (x - mean) / sigma`` and the gradient ``g``:

    ``grad_x = gamma / sigma (g - sum g / n - u sum(g u) / n)``, the sums over all ranks; ``grad_gamma = sum g u`` and
    ``grad_beta = sum g`` over this one's, since all gradients of parameters are averaged later.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, near: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``near``: values not far from the means, so that no digits cancel in ``E[x^2] - E[x]^2``."""
        values, count = in_float32(x), _count(x)
        var, mean = torch.var_mean(values, _dims(x), correction=0)
        share, off = values.numel() / mean.numel() / count, mean - near
        off, square = collective.summed(torch.stack([off, var + off.square()]) * share)
        mean, var = near + off, (square - off.square()).clamp_min(0)
        slope, inverse = (norm_multiplier(factor, var, eps) for factor in (gamma, torch.ones_like(var)))
        ctx.save_for_backward(x, mean, slope, inverse)
        ctx.count = count
        ctx.mark_non_differentiable(mean, var)
        y = torch.addcmul(_by_channel(beta - mean * slope, x), values, _by_channel(slope, x))
        return y.to(x.dtype), mean, var

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, steepness, inverse = ctx.saved_tensors
        grad = in_float32(grads[0])
        unit = (in_float32(x) - _by_channel(mean, x)) * _by_channel(inverse, x)
        own = torch.stack([grad.sum(_dims(x)), (grad * unit).sum(_dims(x))])
        to_x = None
        if ctx.needs_input_grad[0]:
            shift, slope = (_by_channel(total, x) for total in collective.summed(own) / ctx.count)
            to_x = ((grad - shift - unit * slope) * _by_channel(steepness, x)).to(x.dtype)
        return to_x, own[1], own[0], None, None
