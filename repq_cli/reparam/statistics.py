"""Where the batch-norm statistics of a merge come from.

A branch asks ``statistics(norm, weight)`` for the mean and the biased variance of ``X * weight``, the input of one
batch norm. Running statistics are constants; batch statistics run the convolution (RepQ-BN); estimated ones need
moments of the block's input only (RepQ-BNEst). The last two remember what they saw until ``update_running`` is called.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repq_cli.reparam.algebra import Geometry, pad_input

Estimator = Literal["offset", "channel"]


class Moments(NamedTuple):
    """Per-channel mean and biased variance, each ``[C]``."""

    mean: Tensor
    var: Tensor


class Statistics(Protocol):
    """Answers what a batch norm would see behind ``weight``; ``None`` stands for the identity kernel."""

    def __call__(self, norm: nn.BatchNorm2d, weight: Tensor | None) -> Moments: ...


class RunningStatistics:
    """The running mean and variance that the batch norm has stored: constants, the ones of inference."""

    def __call__(self, norm: nn.BatchNorm2d, weight: Tensor | None) -> Moments:
        assert norm.running_mean is not None and norm.running_var is not None
        return Moments(norm.running_mean, norm.running_var)


class _Observed:
    """Statistics of the current batch, kept until they enter the running averages."""

    def __init__(self, x: Tensor, geometry: Geometry, detach: bool) -> None:
        self.x = x.detach() if detach else x
        self.geometry = geometry
        self.seen: list[tuple[nn.BatchNorm2d, Moments]] = []
        size, padding, stride = geometry.kernel_size, geometry.padding, geometry.stride
        self.out_size = [(extent + 2 * padding - size) // stride + 1 for extent in x.shape[2:]]
        self.count = x.shape[0] * self.out_size[0] * self.out_size[1]
        if self.count < 2:
            raise ValueError(
                f"Batch statistics need more than one value per channel, but the input {tuple(x.shape)} gives one: "
                f"use a larger batch or larger images."
            )

    def _remember(self, norm: nn.BatchNorm2d, moments: Moments) -> Moments:
        self.seen.append((norm, moments))
        return moments

    @torch.no_grad()
    def update_running(self) -> None:
        """Exponential averages as in PyTorch: momentum of the new value, the variance made unbiased first."""
        for norm, (mean, var) in self.seen:
            assert norm.running_mean is not None and norm.running_var is not None
            assert norm.momentum is not None and norm.num_batches_tracked is not None
            norm.running_mean.lerp_(mean, norm.momentum)
            norm.running_var.lerp_(var * (self.count / (self.count - 1)), norm.momentum)
            norm.num_batches_tracked += 1


class BatchStatistics(_Observed):
    """Mean and biased variance of ``Y = X * weight`` over batch and positions, by running the convolution.

    Source: arXiv 2311.05317, Algorithm 1, lines 1-3. Not detached, the merge has exactly the gradients of batch norm.
    """

    def __init__(self, x: Tensor, geometry: Geometry, detach: bool = False) -> None:
        super().__init__(x, geometry, detach)

    def __call__(self, norm: nn.BatchNorm2d, weight: Tensor | None) -> Moments:
        y = self.x if weight is None else self._convolve(weight)
        var, mean = torch.var_mean(y, dim=(0, 2, 3), correction=0)
        return self._remember(norm, Moments(mean, var))

    def _convolve(self, weight: Tensor) -> Tensor:
        geometry = self.geometry
        padding = geometry.padding_of((weight.shape[2], weight.shape[3]))
        if min(padding) >= 0:
            return F.conv2d(self.x, weight, None, geometry.stride, padding, 1, geometry.groups)
        cropped = pad_input(self.x, padding)
        return F.conv2d(cropped, weight, None, geometry.stride, 0, 1, geometry.groups)


class EstimatedStatistics(_Observed):
    """Estimates of the same moments from moments of the input, without the convolution (RepQ-BNEst).

    ``mean[o] = sum_iab W[o,i,a,b] m[i,a,b]`` and ``var[o] = sum_iab W[o,i,a,b]^2 v[i,a,b]``: covariances between inputs
    are dropped. ``m, v`` are computed once for all branches. With ``offset`` they are the moments of what each tap
    really sees, so that the mean is exact for any stride and padding; with ``channel`` all taps use their channel's.

    Source: arXiv 2311.05317, section 3.3 (1x1 case); the per-tap form is our reading of the general case.
    """

    def __init__(self, x: Tensor, geometry: Geometry, estimator: Estimator = "offset", detach: bool = False) -> None:
        super().__init__(x, geometry, detach)
        self.tap_mean, self.tap_var = self._tap_moments(estimator)

    def __call__(self, norm: nn.BatchNorm2d, weight: Tensor | None) -> Moments:
        if weight is None:
            centre = self.geometry.kernel_size // 2
            return self._remember(norm, Moments(self.tap_mean[:, centre, centre], self.tap_var[:, centre, centre]))
        groups = self.geometry.groups
        grouped = weight.reshape(groups, weight.shape[0] // groups, -1)
        mean, var = (self._centred(table, weight).reshape(groups, -1, 1) for table in (self.tap_mean, self.tap_var))
        return self._remember(norm, Moments((grouped @ mean).flatten(), (grouped.square() @ var).flatten()))

    def _centred(self, table: Tensor, weight: Tensor) -> Tensor:
        """The taps of ``table`` ``[I, k, k]`` under a smaller, centred kernel."""
        rows, columns = ((self.geometry.kernel_size - extent) // 2 for extent in weight.shape[2:])
        return table[:, rows : rows + weight.shape[2], columns : columns + weight.shape[3]]

    def _tap_moments(self, estimator: Estimator) -> Moments:
        """Mean and biased variance ``[I, k, k]`` of the input under each tap of the kernel."""
        # Reduce over the batch first: what remains are two small maps, whatever the estimator does with them.
        sums = torch.stack([self.x.sum(0), self.x.square().sum(0)])
        if estimator == "channel":
            mean, square = sums.mean((2, 3)) / self.x.shape[0]
            size = self.geometry.kernel_size
            table = torch.stack([mean, square]).view(2, -1, 1, 1).expand(2, -1, size, size)
        else:
            rows, columns = (
                self._windows(extent, count, sums)
                for extent, count in zip(self.x.shape[2:], self.out_size, strict=True)
            )
            table = rows @ sums @ columns.T / self.count
        mean, square = table
        # E[x^2] - E[x]^2 loses digits only where the mean is hundreds of deviations away, which no activation's is.
        return Moments(mean, (square - mean.square()).clamp_min(0))

    def _windows(self, extent: int, count: int, like: Tensor) -> Tensor:
        """``[k, extent]``: how often tap ``a`` reads position ``y = stride * out + a - padding`` of the input."""
        taps = torch.arange(self.geometry.kernel_size).view(-1, 1, 1)
        read = self.geometry.stride * torch.arange(count).view(1, -1, 1) + taps - self.geometry.padding
        return (read == torch.arange(extent)).sum(1).to(like)
