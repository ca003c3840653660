"""How many bits a tensor needs whose values are sums and products of quantized ones.

Values are taken in float64: in float32, rounding alone would make new ones.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MOST_BITS = 24  # what float32 holds: a finer grid is none
RESOLUTION = 2.0**-MOST_BITS  # of the largest value
EXACT = 2.0**-40  # of the largest value: what rounding in float64 leaves, and chance does not


def levels(weight: Tensor) -> int:
    """The most distinct values in one output channel of ``[O, ...]``, up to ``RESOLUTION``."""
    values = weight.flatten(1).double()
    largest = values.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    ordered = (values / largest).sort(1).values
    return int((ordered.diff(dim=1) > RESOLUTION).sum(1).max()) + 1


def table_bits(weight: Tensor) -> int:
    """The fewest bits with which codes into a look-up table of each channel's values can name all of them.

    >>> table_bits(torch.tensor([[0.0, 1, 2, 3, 4, 6, 9]]))
    3
    """
    return max(1, math.ceil(math.log2(levels(weight))))


def uniform_bits(weight: Tensor) -> int | None:
    """The fewest bits of integers that give every channel as ``step * integer``; None if 24 are too few.

    Integers are unsigned where no value is negative, otherwise in two's complement.

    >>> uniform_bits(torch.tensor([[0.0, 1, 2, 3, 4, 6, 9]]))
    4
    >>> uniform_bits(torch.tensor([[1.0, 2**0.5]], dtype=torch.float64)) is None
    True
    """
    integers = _integers(weight.flatten(1).double())
    if integers is None:
        return None
    low, high = integers.min().item(), integers.max().item()
    signed = 1 + math.ceil(math.log2(max(-low, high + 1)))
    bits = signed if low < 0 else max(1, math.ceil(math.log2(high + 1)))
    return bits if bits <= MOST_BITS else None


def _integers(values: Tensor) -> Tensor | None:
    """Each row divided by the largest step of which all its values are multiples; None if one has no such step.

    Euclid's algorithm takes a remainder below half of ``RESOLUTION`` times the largest value for zero, so its step is
    an approximation: only a least-squares step that then fits to ``EXACT`` is one.
    """
    largest = values.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    tolerance = largest * RESOLUTION / 2
    steps = values.abs()
    while steps.shape[1] > 1:  # common steps of pairs, then of pairs of those
        if steps.shape[1] % 2:
            steps = torch.cat([steps, torch.zeros_like(largest)], 1)
        steps = _common_steps(steps[:, ::2], steps[:, 1::2], tolerance)
        if bool(((steps > 0) & (steps < 2 * tolerance)).any()):
            return None
    integers = (values / torch.where(steps > tolerance, steps, 1.0)).round()
    fitted = (values * integers).sum(1, keepdim=True) / integers.square().sum(1, keepdim=True).clamp_min(1)
    exact = bool(((values - integers * fitted).abs() <= EXACT * largest).all())
    return integers if exact else None


def _common_steps(a: Tensor, b: Tensor, tolerance: Tensor) -> Tensor:
    """Element by element, the largest number of which ``a`` and ``b`` are multiples."""
    while bool((b > tolerance).any()):
        live = b > tolerance
        remainder = torch.remainder(a, torch.where(live, b, 1.0))
        remainder = torch.where(b - remainder <= tolerance, 0.0, remainder)
        a, b = torch.where(live, b, a), torch.where(live, remainder, b)
    return a
