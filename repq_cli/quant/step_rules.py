"""Rules for learned steps beside their gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repq_cli.quant.layers import quant_layers
from repq_cli.quant.lsq import LSQ


@torch.no_grad()
def bring_steps_back(net: nn.Module, factor: float) -> int:
    """Set those steps of merged kernels anew that lie outside ``[s / factor, s factor]``; how many those were.

    ``s`` is the step of least squared error for the kernel of eval mode as it is now: see ``min_error_step``.
    Source: ours. Learned steps drift: a step that clips everything, or rounds everything to zero, has no way back.
    """
    found = 0
    for layer in quant_layers(net).values():
        quantizer = layer.quantizer
        if not isinstance(quantizer, LSQ):
            continue
        learned, step = quantizer.raw_step.clone(), quantizer.step()
        quantizer.calibrate(layer.merged_weight())
        drifted = _apart(step, quantizer.step(), factor)
        quantizer.raw_step.copy_(torch.where(drifted, quantizer.raw_step, learned))
        found += int(drifted.sum())
    return found


def _apart(step: Tensor, best: Tensor, factor: float) -> Tensor:
    """Where two positive steps differ by more than a factor; NaN, of which training is told, is left alone."""
    return (step * factor < best) | (step > best * factor)
