"""What quantizing a tensor does to it, in numbers."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from repq_cli.devices import in_float64
from repq_cli.quant.functional import Grid
from repq_cli.quant.quantizer import Quantizer


class Noise(NamedTuple):
    """Sums over values ``v`` and what is left of them, ``q``; those of batches add up by ``plus``.

    signal, noise  ``sum v^2``, ``sum (v - q)^2``
    clipped        how many lie beyond the first or last code, not counting those that round to it; None for signs,
                   which clip nothing or everything
    zeros          how many have the code of zero
    total          how many there are
    """

    signal: float
    noise: float
    clipped: int | None
    zeros: int
    total: int

    def plus(self, other: Noise) -> Noise:
        """The sums over the values of both."""
        clipped = None if self.clipped is None or other.clipped is None else self.clipped + other.clipped
        return Noise(
            self.signal + other.signal,
            self.noise + other.noise,
            clipped,
            self.zeros + other.zeros,
            self.total + other.total,
        )

    @property
    def sqnr(self) -> float | None:
        """Signal-to-quantization-noise ratio in dB, see ``decibels``."""
        return decibels(self.signal, self.noise)


def decibels(signal: float, noise: float) -> float | None:
    """``10 log10(signal / noise)`` of two powers; None where one of them is zero.

    >>> decibels(100.0, 1.0), decibels(1.0, 0.0)
    (20.0, None)
    """
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None


@torch.no_grad()
def quantization_noise(
    values: Tensor, quantizer: Quantizer, grid: Grid | None = None, per_channel: bool = False
) -> Noise:
    """The noise of ``values`` under a quantizer, on its own grid for them or another.

    Codes without a scale (signs: a batch norm takes any scale away) count as times the scale of least error,
    ``<v, q> / <q, q>``, of the tensor or, if ``per_channel``, of each output channel of ``[O, ...]``.
    """
    grid = quantizer.grid(values) if grid is None else grid
    codes = quantizer.integers_on(grid, values)
    left = grid.dequantize(codes)
    if quantizer.scale_free:
        dims = list(range(int(per_channel), values.dim()))
        left = left * ((values * left).sum(dims, keepdim=True) / left.square().sum(dims, keepdim=True))
    zero = 0 if grid.zero_point is None else grid.zero_point
    rounded = (values / grid.step).round_() + zero
    return Noise(
        in_float64(values).square().sum().item(),
        in_float64(values - left).square().sum().item(),
        None if quantizer.by_sign else int(quantizer.beyond(rounded).sum()),
        int((codes == zero).sum()),
        values.numel(),
    )


class RangeRatio(NamedTuple):
    """``max |w| / sqrt(mean w^2)`` of what shares a step: the median channel's and the largest."""

    typical: float
    largest: float


@torch.no_grad()
def range_ratio(weight: Tensor, per_channel: bool) -> RangeRatio | None:
    """How far the largest weight stands out, by output channel of ``[O, ...]`` or in the whole tensor.

    At least 1; ``sqrt(3)`` for uniform weights. Large ratios are what makes a kernel hard to quantize: the step has to
    reach the largest weight and to resolve all others. Weights that are zero do not count, since a branch's kernel may
    be smaller than its frame. None for a tensor of zeros.
    """
    rows = weight.flatten(1) if per_channel else weight.flatten().unsqueeze(0)
    rows = in_float64(rows)
    counts = (rows != 0).sum(1)
    live = counts > 0
    if not live.any():
        return None
    ratios = rows.abs().amax(1)[live] / (rows.square().sum(1)[live] / counts[live]).sqrt()
    return RangeRatio(ratios.quantile(0.5).item(), ratios.max().item())
