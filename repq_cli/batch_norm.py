"""Batch norm as the multiplication that it is once its statistics are known."""

from __future__ import annotations

import torch
from torch import Tensor


def norm_multiplier(gamma: Tensor, var: Tensor, eps: float) -> Tensor:
    """``gamma / sqrt(var + eps)``, all ``[C]``: by what each channel's deviation from its mean is multiplied."""
    return gamma / torch.sqrt(var + eps)
