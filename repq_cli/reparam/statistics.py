"""Where the batch-norm statistics of a merge come from.

A branch asks ``statistics(norm, kernel, geometry)`` for the mean and the biased variance of ``X * weight + bias``, the
input of one batch norm. Where batch norms are nested, the kernel is what the inner ones have become. Running statistics
are constants; batch statistics run the convolution (RepQ-BN); estimated ones need moments of the block's input only
(RepQ-BNEst). The last two remember what they saw until ``update_running`` is called. Where ranks share a batch
(``repq_cli.collective``), they are those of all of it.
"""

from __future__ import annotations

import functools
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from repq_cli import collective
from repq_cli.reparam.algebra import Kernel, seen_by_point, window_over
from repq_cli.reparam.layout import Layout, Pair, Side
from repq_cli.reparam.moments import Covariance, Moments, conv_moments, covariance, map_moments, power_sums

Estimator = Literal["offset", "channel"]


class Statistics(Protocol):
    """Answers what a batch norm sees behind ``kernel``; ``None`` stands for the identity kernel.

    ``geometry``: how the kernel is applied to the block's input; a smaller kernel lies in its centre.
    """

    def __call__(self, norm: nn.BatchNorm2d, kernel: Kernel | None, geometry: Layout) -> Moments: ...


class RunningStatistics:
    """The running mean and variance that the batch norm has stored: constants, the ones of inference."""

    def __call__(self, norm: nn.BatchNorm2d, kernel: Kernel | None, geometry: Layout) -> Moments:
        assert norm.running_mean is not None and norm.running_var is not None
        return Moments(norm.running_mean, norm.running_var)


class _Observed:
    """Statistics of the current batch, kept until they enter the running averages."""

    def __init__(self, x: Tensor, detach: bool, images: int | None = None) -> None:
        """``detach``: no gradient goes through the statistics, neither to the input nor to the kernel.

        images: how many all ranks together look at, where that is not the batch that they share.
        """
        self.x, self.detach = x, detach
        self.images = collective.images_of_all(x.shape[0]) if images is None else images
        self.seen: list[tuple[nn.BatchNorm2d, Moments]] = []
        self.counts: list[int] = []

    def __call__(self, norm: nn.BatchNorm2d, kernel: Kernel | None, geometry: Layout) -> Moments:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.detach):
            moments = self._moments(norm, kernel, geometry)
        rows, columns = geometry.out_size(self.x)
        count = self.images * rows * columns
        if count < 2:
            raise ValueError(
                f"Batch statistics need more than one value per channel, but the input {tuple(self.x.shape)} gives "
                f"one: use a larger batch, larger images or a larger mode.stats_fraction."
            )
        self.seen.append((norm, moments))
        self.counts.append(count)
        return moments

    def _moments(self, norm: nn.BatchNorm2d, kernel: Kernel | None, geometry: Layout) -> Moments:
        raise NotImplementedError

    def update_running(self) -> None:
        """Exponential averages as in PyTorch: momentum of the new value, the variance made unbiased first."""
        with torch.no_grad():  # as a decorator the compiler could not follow it
            for (norm, (mean, var)), count in zip(self.seen, self.counts, strict=True):
                assert norm.running_mean is not None and norm.running_var is not None
                assert norm.momentum is not None and norm.num_batches_tracked is not None
                norm.running_mean.lerp_(mean, norm.momentum)
                norm.running_var.lerp_(var * (count / (count - 1)), norm.momentum)
                norm.num_batches_tracked.add_(1)


class BatchStatistics(_Observed):
    """Mean and biased variance of ``Y = X * weight + bias`` over batch and positions (RepQ-BN).

    By running the convolution. Where that would be a 1x1 one, the covariance of the input's channels says the same,
    ``w C w^T``, of all such kernels at once and of the identity with them; to take it costs less than to run one of
    them, forward and backward, unless that has few outputs.

    Source: arXiv 2311.05317, Algorithm 1, lines 1-3. Not detached, the merge has exactly the gradients of batch norm.
    """

    def __init__(self, x: Tensor, detach: bool = False, images: int | None = None) -> None:
        super().__init__(x, detach, images)
        self._covariances: dict[tuple[Pair, Pair], Covariance] = {}

    def _moments(self, norm: nn.BatchNorm2d, kernel: Kernel | None, geometry: Layout) -> Moments:
        found = self._behind_weight(None if kernel is None else kernel.weight, geometry)
        if kernel is not None:
            found = found._replace(mean=found.mean + kernel.bias)
        assert norm.running_mean is not None
        return (
            of_all_ranks(found, self.x.shape[0] / self.images, norm.running_mean) if collective.is_shared() else found
        )

    def _behind_weight(self, weight: Tensor | None, geometry: Layout) -> Moments:
        key = (geometry.strides, geometry.padding_of((1, 1)))
        if weight is None:
            return self._covariances[key].moments(None) if key in self._covariances else map_moments(self.x)
        inputs = self.x.shape[1]
        if weight.shape[2:].numel() > 1 or geometry.groups > 1 or inputs > 2 * weight.shape[0]:
            x, window = window_over(self.x, weight, geometry)
            return conv_moments(x, weight, window)
        if key not in self._covariances:
            self._covariances[key] = covariance(seen_by_point(self.x, geometry))
        return self._covariances[key].moments(weight)


class EstimatedStatistics(_Observed):
    """Estimates of the same moments from moments of the input, without the convolution (RepQ-BNEst).

    ``mean[o] = sum_iab W[o,i,a,b] m[i,a,b] + b[o]`` and ``var[o] = sum_iab W[o,i,a,b]^2 v[i,a,b]``: covariances between
    inputs are dropped. ``m, v`` are computed once for all branches. With ``offset`` they are the moments of what each
    tap really sees, so that the mean is exact for any stride and padding; with ``channel`` each tap has its channel's.
    A nested batch norm is estimated from the merged kernel in front of it, so that its mean stays exact; to take the
    inner norm's beta and gamma^2 for the moments of a white map in between would drop other covariances instead.

    Source: arXiv 2311.05317, section 3.3 (1x1 case); the per-tap form is our reading of the general case.
    """

    def __init__(
        self, x: Tensor, estimator: Estimator = "offset", detach: bool = False, images: int | None = None
    ) -> None:
        super().__init__(x, detach, images)
        self.estimator = estimator
        # Reduced over the batch first: what remains are two small maps for the windows of all taps.
        self._sums = torch.cat(power_sums(x.detach() if detach else x, by_position=estimator == "offset"))
        self._tables: dict[tuple[Side, Side], Moments] = {}
        self._of_channels: Tensor | None = None

    def _moments(self, norm: nn.BatchNorm2d, kernel: Kernel | None, geometry: Layout) -> Moments:
        tap_mean, tap_var = self._tap_moments(geometry)
        if kernel is None:
            row, column = (size // 2 for size in geometry.sizes)
            return Moments(tap_mean[:, row, column], tap_var[:, row, column])
        weight, groups = kernel.weight, geometry.groups
        grouped = weight.reshape(groups, weight.shape[0] // groups, -1)
        mean, var = (_centred(table, weight).reshape(groups, -1, 1) for table in (tap_mean, tap_var))
        return Moments((grouped @ mean).flatten() + kernel.bias, (grouped.square() @ var).flatten())

    def _tap_moments(self, geometry: Layout) -> Moments:
        """Mean and biased variance ``[I, kh, kw]`` of the input under each tap of the geometry's kernel."""
        key = geometry.sides
        if key not in self._tables:
            table = self._channel_table if self.estimator == "channel" else self._tap_table
            mean, square = table(geometry)
            # E[x^2] - E[x]^2 loses digits only where the mean is hundreds of deviations away: no activation's is.
            self._tables[key] = Moments(mean, (square - mean.square()).clamp_min(0))
        return self._tables[key]

    def _channel_table(self, geometry: Layout) -> Tensor:
        if self._of_channels is None:  # whatever the taps
            self._of_channels = collective.summed(self._sums) / (self.images * self.x.shape[2:].numel())
        return self._of_channels.expand(-1, -1, *geometry.sizes)

    def _tap_table(self, geometry: Layout) -> Tensor:
        sizes = geometry.out_size(self.x)
        # The same at every step, and a GPU would have to be waited for; a compiler has the constants in its graph.
        windows = _windows if torch.compiler.is_compiling() else _kept_windows
        rows, columns = (
            windows(side, extent, count, self._sums.dtype, self._sums.device)
            for side, extent, count in zip(geometry.sides, self.x.shape[2:], sizes, strict=True)
        )
        # Of 2 H W numbers a channel 2 k^2 travel between ranks.
        return collective.summed(rows @ self._sums @ columns.T) / (self.images * sizes[0] * sizes[1])


def of_all_ranks(own: Moments, share: float, near: Tensor) -> Moments:
    """The moments of all ranks' images, of which ``own`` are those of the given share: 2 O numbers travel.

    ``near``: values close to the means, so that few digits cancel in ``E[(y - near)^2] - E[y - near]^2``.
    """
    near = collective.as_it_is(near)
    off = own.mean - near
    off, square = collective.summed(torch.stack([off, own.var + off.square()]) * share)
    return Moments(near + off, (square - off.square()).clamp_min(0))


def _centred(table: Tensor, weight: Tensor) -> Tensor:
    """The taps of ``table`` ``[I, kh, kw]`` under a smaller, centred kernel."""
    rows, columns = ((size - extent) // 2 for size, extent in zip(table.shape[1:], weight.shape[2:], strict=True))
    return table[:, rows : rows + weight.shape[2], columns : columns + weight.shape[3]]


def _windows(side: Side, extent: int, count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``[k, extent]``: how often tap ``a`` reads position ``y = stride * out + dilation * a - padding``."""
    taps = side.dilation * torch.arange(side.size, device=device).view(-1, 1, 1)
    read = side.stride * torch.arange(count, device=device).view(1, -1, 1) + taps - side.padding
    return (read == torch.arange(extent, device=device)).sum(1).to(dtype)


@functools.lru_cache(maxsize=512)
def _kept_windows(side: Side, extent: int, count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # what is kept from there could not take part in training
        return _windows(side, extent, count, dtype, device)
