"""Fixed-point multiplication: a real factor as an integer and a shift, as in gemmlowp (arXiv 1712.05877, eq. 5 and 6).

Integers are ``int32`` by value; products are formed in ``int64``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

INT32_MAX = 2**31 - 1


class Multiplier(NamedTuple):
    """The factors ``mantissa * 2**-31 * 2**-shift``, one per channel; ``2**30 <= |mantissa| < 2**31``, or 0."""

    mantissa: Tensor
    shift: Tensor

    @property
    def value(self) -> Tensor:
        """The factors as ``float64``."""
        return self.mantissa.double() * 2.0 ** (-31 - self.shift).double()


def quantize_multiplier(factor: Tensor) -> Multiplier:
    """The nearest multiplier to each factor, within a relative error of 2**-31.

    >>> quantize_multiplier(torch.tensor([0.25, 1.5], dtype=torch.float64))
    Multiplier(mantissa=tensor([1073741824, 1610612736]), shift=tensor([ 1, -1]))
    """
    fraction, exponent = torch.frexp(factor.double())
    mantissa = (fraction * 2.0**31).round().long()
    full = mantissa.abs() == 2**31  # 0.999… was rounded up to 1: it is 0.5 with the next exponent
    mantissa = torch.where(full, mantissa // 2, mantissa)
    return Multiplier(mantissa, torch.where(mantissa == 0, 0, -exponent.long() - full.long()))


def high_product(x: Tensor, mantissa: Tensor) -> Tensor:
    """``x * mantissa / 2**31``, rounded to nearest, halves up; saturated where both are -2**31.

    gemmlowp's SaturatingRoundingDoublingHighMul.
    """
    product = x.long() * mantissa
    nudge = torch.where(product >= 0, 2**30, 1 - 2**30)
    return torch.div(product + nudge, 2**31, rounding_mode="trunc").clamp(max=INT32_MAX)


def rounding_shift(x: Tensor, shift: Tensor) -> Tensor:
    """``x / 2**shift``, rounded to nearest, halves away from zero, for ``shift >= 0``: gemmlowp's RoundingDivideByPOT.

    >>> rounding_shift(torch.tensor([5, 6, 7, -6, -5]), torch.tensor(2))
    tensor([ 1,  2,  2, -2, -1])
    """
    shift = shift.clamp(max=62)  # of what is left by then nothing is
    mask = (1 << shift) - 1
    remainder = x & mask
    threshold = (mask >> 1) + (x < 0).long()
    return (x >> shift) + (remainder > threshold).long()


def rescale(x: Tensor, multiplier: Multiplier) -> Tensor:
    """``x * factor``, rounded: the high product, then the rounding shift.

    Factors of one and more (a negative shift) are multiplied exactly and rounded once, since shifting ``x`` to the left
    beforehand could overflow.
    """
    mantissa, shift = multiplier
    small = rounding_shift(high_product(x, mantissa), shift.clamp(min=0))
    if not bool((shift < 0).any()):
        return small
    exact = rounding_shift(x.long() * mantissa, (31 + shift).clamp(0, 31))
    return torch.where(shift < 0, exact, small)


def per_channel(values: Tensor, like: Tensor) -> Tensor:
    """``[C]`` or ``[1]`` in a shape that broadcasts against ``[N, C, ...]``."""
    return values.view(1, -1, *[1] * (like.dim() - 2))


def rescaled(x: Tensor, multiplier: Multiplier) -> Tensor:
    """``rescale`` with one multiplier per channel, the second dimension."""
    return rescale(x, Multiplier(*(per_channel(part, x) for part in multiplier)))


def saturated(x: Tensor) -> Tensor:
    """To int32, of 64 bits: addends may be larger than their sum may. What saturates is behind every next last code."""
    return x.clamp(-INT32_MAX, INT32_MAX).to(torch.int32)


def with_bias(sums: Tensor, left: Tensor, bias: Tensor | None) -> Tensor:
    """The sums of a layer, shifted to the left as far as an int32 allows, plus its bias, which is that much finer."""
    y = sums << per_channel(left, sums)
    return y if bias is None else y + per_channel(bias, y)
