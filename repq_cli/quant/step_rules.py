"""Rules for learned steps beside their gradients."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from repq_cli.quant.functional import Grid
from repq_cli.quant.layers import quant_layers
from repq_cli.quant.lsq import LSQ
from repq_cli.quant.split import SplitLSQ


@torch.no_grad()
def bring_steps_back(net: nn.Module, factor: float) -> int:
    """Set those steps of merged kernels anew that lie outside ``[s / factor, s factor]``; how many those were.

    ``s`` is the step of least squared error for the kernel of eval mode as it is now: see ``min_error_step``. It is
    looked for where it may lie that far, which is where the error at ``factor`` times the step, or at one factor-th,
    is no larger than at the step: in few channels, and for all others three passes tell.
    Source: ours. Learned steps drift: a step that clips everything, or rounds everything to zero, has no way back.
    """
    found = 0
    for layer in quant_layers(net).values():
        quantizer = layer.quantizer
        if not isinstance(quantizer, LSQ):
            continue
        kernel, steps = layer.merged_weight(), quantizer.raw_step.view(-1)
        error, coarser, finer = (_errors(quantizer, kernel, times) for times in (1.0, factor, 1 / factor))
        channels = ((error >= coarser) | (error >= finer)).any(0).nonzero().flatten()
        if len(channels):
            learned, least = steps[channels], _least_error_steps(quantizer, kernel, channels)
            drifted = _apart(learned.abs(), least, factor)
            steps[channels] = torch.where(drifted, least, learned)
            found += int(drifted.sum())
    return found


def _errors(quantizer: LSQ, kernel: Tensor, times: float) -> Tensor:
    """``[1 or 2, channels or 1]``: the squared error of the kernel at so many times the steps.

    With an identity that is split from it also of all other taps, whose error alone has a single least.
    """
    grid = Grid(quantizer.step_for(kernel) * times)
    errors = (grid.dequantize(quantizer.integers_on(grid, kernel)) - kernel).square()
    kinds = [errors, errors.masked_fill(quantizer.split, 0)] if isinstance(quantizer, SplitLSQ) else [errors]
    return torch.stack([kind.reshape(quantizer.channels or 1, -1).sum(1) for kind in kinds])


def _least_error_steps(quantizer: LSQ, kernel: Tensor, channels: Tensor) -> Tensor:
    """Those of some of the output channels."""
    part = copy.deepcopy(quantizer)
    if quantizer.channels is not None:
        part.channels, part.raw_step = len(channels), nn.Parameter(part.raw_step[channels])
        kernel = kernel[channels]
        if isinstance(part, SplitLSQ):
            part.split = part.split[channels]
    part.calibrate(kernel)
    return part.raw_step.view(-1)


def _apart(step: Tensor, best: Tensor, factor: float) -> Tensor:
    """Where two positive steps differ by more than a factor; NaN, of which training is told, is left alone."""
    return (step * factor < best) | (step > best * factor)
