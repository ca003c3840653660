"""First and second moments of an activation tensor, of its channels together, and of a convolution's output.

Autograd would keep maps of the output's size and walk over the input several times. Each of these keeps the input
alone, which the convolution behind it keeps anyway, and knows its gradient in closed form. Under ``torch.compile`` they
are plain operations, which the compiler fuses with what is around them. Sums are of float32 where the input has fewer
bits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from repq_cli.reparam.algebra import Window

POSITIONS = (0, 2, 3)


class Moments(NamedTuple):
    """Per-channel mean and biased variance, each ``[C]``."""

    mean: Tensor
    var: Tensor


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


class _FirstImages(torch.autograd.Function):
    """A slice whose gradient has the input's order of memory, where autograd would make a contiguous one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(x)
        return x[:count]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        to_x = torch.zeros_like(ctx.saved_tensors[0])
        to_x[: len(grads[0])] = grads[0]
        return to_x, None


def first_images(x: Tensor, count: int) -> Tensor:
    """``x[:count]``."""
    return x[:count] if torch.compiler.is_compiling() else _FirstImages.apply(x, count)


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def power_sums(x: Tensor, by_position: bool = True) -> PowerSums:
    """``sum_b x`` and ``sum_b x^2`` of ``x: [B, C, H, W]``.

    Channels-last tensors are summed and differentiated in their own order of memory.
    by_position: keep a sum for each position, else one for each channel.
    """
    dims = (0,) if by_position else POSITIONS
    sums = _power_sums if torch.compiler.is_compiling() else _PowerSums.apply
    if not (by_position and _is_channels_last(x)):
        return PowerSums(*sums(x, dims))
    first, second = sums(x.permute(0, 2, 3, 1), dims)
    return PowerSums(first.permute(0, 3, 1, 2), second.permute(0, 3, 1, 2))


class Covariance(NamedTuple):
    """The mean ``[C]`` and the biased covariance ``[C, C]`` of channels, over batch and positions."""

    mean: Tensor
    matrix: Tensor

    def moments(self, weight: Tensor | None) -> Moments:
        """Exactly those behind a 1x1 convolution ``[O, C, 1, 1]``, ``w m`` and ``w C w^T``, or of the channels."""
        if weight is None:
            return Moments(self.mean, self.matrix.diagonal())
        rows = weight.flatten(1)
        return Moments(rows @ self.mean, (rows @ self.matrix * rows).sum(1).clamp_min(0))


class _Covariance(torch.autograd.Function):
    """``grad_x = (a + (A + A^T) (x - mean)) / n`` with the gradients ``a, A`` of mean and covariance: a 1x1 kernel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, matrix = _covariance(x)
        ctx.save_for_backward(x, mean)
        return mean, matrix

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        to_mean, to_matrix = (grad / (x.numel() // x.shape[1]) for grad in grads)
        kernel, values = to_matrix + to_matrix.T, x.to(mean.dtype)
        bias = to_mean - kernel @ mean
        if _is_channels_last(x):
            return F.linear(values.permute(0, 2, 3, 1), kernel, bias).permute(0, 3, 1, 2).to(x.dtype)
        return F.conv2d(values, kernel[:, :, None, None], bias).to(x.dtype)


def _covariance(x: Tensor) -> tuple[Tensor, Tensor]:
    values, count = x.to(_summing_dtype(x)), x.numel() // x.shape[1]
    mean = values.mean(POSITIONS)
    centred = values - mean.view(-1, 1, 1)
    if _is_channels_last(x):
        rows = centred.permute(0, 2, 3, 1).flatten(0, 2)
        return mean, rows.T @ rows / count
    images = centred.flatten(2)
    return mean, (images @ images.transpose(1, 2)).sum(0) / count


def covariance(x: Tensor) -> Covariance:
    """Of the channels of ``x: [B, C, H, W]``.

    Whatever 1x1 convolutions read ``x``, it has the moments of all of them, for the price of one with C outputs.
    """
    return Covariance(*(_covariance(x) if torch.compiler.is_compiling() else _Covariance.apply(x)))


class _ConvMoments(torch.autograd.Function):
    """With the gradients ``a, v`` of mean and variance, that of the map is ``a/n + (y - mean) 2v/n``.

    The deviations from the mean are kept, one map. To compute them again in backward took a quarter longer.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        y = F.conv2d(x.to(_summing_dtype(x)), weight, None, *window)
        mean = y.mean(POSITIONS)
        deviations = y.sub_(mean.view(-1, 1, 1))
        ctx.save_for_backward(x, weight, deviations)
        ctx.window = window
        return mean, deviations.square().mean(POSITIONS)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, deviations = ctx.saved_tensors
        window, count = ctx.window, deviations.numel() // deviations.shape[1]
        to_mean, to_var = ((grad / count).view(1, -1, 1, 1) for grad in grads)
        to_map = torch.addcmul(to_mean, deviations, to_var, value=2)
        arguments = (list(window.stride), list(window.padding), list(window.dilation), False, [0, 0], window.groups)
        wanted = [*ctx.needs_input_grad[:2], False]
        to_x, to_weight, _ = torch.ops.aten.convolution_backward(
            to_map, x.to(to_map.dtype), weight, None, *arguments, wanted
        )
        return None if to_x is None else to_x.to(x.dtype), to_weight, None


def conv_moments(x: Tensor, weight: Tensor, window: Window) -> Moments:
    """Of every channel of ``conv2d(x, weight)``, by running it."""
    if torch.compiler.is_compiling():
        return _map_moments(F.conv2d(x.to(_summing_dtype(x)), weight, None, *window))
    return Moments(*_ConvMoments.apply(x, weight, window))


class _MapMoments(torch.autograd.Function):
    """``grad_x = a/n + (x - mean) 2v/n`` with the gradients ``a, v`` of mean and variance, in one pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, var = _map_moments(x)
        ctx.save_for_backward(x, mean)
        return mean, var

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        to_mean, to_var = (grad / (x.numel() // x.shape[1]) for grad in grads)
        shift, slope = ((to_mean - 2 * mean * to_var).view(1, -1, 1, 1), to_var.view(1, -1, 1, 1))
        return torch.addcmul(shift, x, slope, value=2).to(x.dtype)


def _map_moments(y: Tensor) -> Moments:
    values = y.to(_summing_dtype(y))
    mean = values.mean(POSITIONS, keepdim=True)
    return Moments(mean.flatten(), (values - mean).square().mean(POSITIONS))


def map_moments(y: Tensor) -> Moments:
    """Of every channel of ``y: [B, C, H, W]`` itself."""
    return _map_moments(y) if torch.compiler.is_compiling() else Moments(*_MapMoments.apply(y))
