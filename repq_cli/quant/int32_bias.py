"""Biases as integers: multiples of what a layer's sums are worth, which kernels of int8 add to the sums themselves.

A sum of codes is worth ``step(w) step(x)``. A batch norm behind multiplies it by ``m`` of either sign: ``|m|`` belongs
to the weight's step and the sign to its codes, so that what ships is one convolution of codes with a bias of int32.
Codes of fewer bits are multiplied by a power of two there, to fill eight, and the bias's step is as much finer.
Source: arXiv 1712.05877, section 2.4, where biases are rounded after training; here training rounds them as well.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from repq_cli.quant.functional import Grid
from repq_cli.quant.quantizer import Quantizer

LARGEST = 2.0**30  # of a bias's integer, with room for the sum of products that it is added to
SMALLEST_WORTH = 1e-30  # of a weight's code, its batch norm included: steps are positive in dead channels as well


class IntegerSums(NamedTuple):
    """A layer of integers: ``(fineness conv(codes(x), codes) + bias) * bias_step``.

    codes      of the weight, in its shape; ``grid``: what they stand for, a batch norm's multiplier included
    bias       ``[O]`` integers; ``bias_step``: ``[O]`` or ``[1]``, what one is worth
    """

    codes: Tensor
    grid: Grid
    bias: Tensor
    bias_step: Tensor


def rounding(bias: Tensor, worth: Tensor) -> Tensor:
    """What is added to ``bias`` to make it the nearest multiple of ``worth``, both ``[O]`` (or ``worth`` ``[]``)."""
    return (bias / worth).round_().mul_(worth).sub_(bias)


def integer_sums(
    quantizer: Quantizer, weight: Tensor, multiplier: Tensor | None, bias: Tensor, input_step: Tensor
) -> IntegerSums:
    """The integers of a layer, ``multiplier`` that of a batch norm behind it and ``bias`` what is added last.

    Where the multiplier is below zero the codes are those of ``-weight``: opposite but for weights at a lowest code
    that has no opposite, which get the highest. A dead channel's weights are so small that its bias would be no int32
    in their step: it gets a larger one.
    """
    per_channel = (-1, *[1] * (weight.dim() - 1))
    grid = quantizer.grid(weight)
    worth = grid.step
    if multiplier is not None:
        sign = torch.where(multiplier < 0, -1.0, 1.0).to(weight.dtype).view(per_channel)
        grid = Grid(grid.step, None if grid.zero_point is None else grid.zero_point * sign)
        weight, worth = weight * sign, worth * multiplier.abs().view(per_channel)
    least = (bias.abs() * quantizer.fineness / (LARGEST * input_step)).clamp_min(SMALLEST_WORTH)
    least = least.view(per_channel) if worth.numel() > 1 else least.max()
    larger = torch.maximum(worth, least)
    coarser = torch.where(larger > worth, larger / worth, 1.0)
    codes = quantizer.integers_on(grid._replace(step=grid.step * coarser), weight)
    step = larger.flatten() * input_step / quantizer.fineness
    return IntegerSums(codes, grid._replace(step=larger), (bias / step).round_(), step)
