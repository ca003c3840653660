"""Batch norm as the multiplication that it is once its statistics are known, and with another shift than its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repq_cli import collective


def norm_multiplier(gamma: Tensor, var: Tensor, eps: float) -> Tensor:
    """``gamma / sqrt(var + eps)``, all ``[C]``: by what each channel's deviation from its mean is multiplied."""
    return gamma / torch.sqrt(var + eps)


def as_multiplication(norm: nn.BatchNorm1d | nn.BatchNorm2d, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """``(multiplier, shift)``, both ``[C]``, of ``norm(y + bias) = multiplier y + shift`` by running statistics."""
    assert norm.running_var is not None and norm.running_mean is not None
    multiplier = norm_multiplier(norm.weight, norm.running_var, norm.eps)
    mean = norm.running_mean if bias is None else norm.running_mean - bias
    return multiplier, norm.bias - mean * multiplier


def shifted_norm(norm: nn.BatchNorm1d | nn.BatchNorm2d, y: Tensor, shift: Tensor) -> Tensor:
    """``norm(y) + shift``, ``shift [C]`` a constant, in one pass; counts the batch and moves statistics as ``norm``."""
    if collective.is_shared():  # statistics of all ranks' images, which the norm itself sees to
        return norm(y) + shift.view(-1, *[1] * (y.dim() - 2))
    if norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    momentum = 0.0 if norm.momentum is None else norm.momentum
    return F.batch_norm(
        y, norm.running_mean, norm.running_var, norm.weight, norm.bias + shift, norm.training, momentum, norm.eps
    )
