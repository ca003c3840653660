"""The batch norm that stands behind a quantized layer and was not there in full precision."""

from __future__ import annotations

import torch
from torch import Tensor, nn

FLOOR = 0.01  # of the mean variance of a layer's channels


class _PostNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm whose ``eps`` is a share of the variance that its layer starts with.

    Codes of one or two bits leave some channels without variance. With torch's own eps, 1e-5, each such channel
    multiplies gradients by hundreds, and a chain of layers by more than float32 holds; a floor of 1 % of the mean
    variance keeps that below ten.
    """

    @torch.no_grad()
    def take_over(self, mean: Tensor, var: Tensor) -> None:
        """Scale and shift for outputs with this mean and variance."""
        self.weight.copy_(torch.sqrt(var))
        self.bias.copy_(mean)

    @torch.no_grad()
    def set_statistics(self, mean: Tensor, var: Tensor) -> None:
        """Start with these running statistics, and with a floor for this variance."""
        assert self.running_mean is not None and self.running_var is not None
        self.running_mean.copy_(mean)
        self.running_var.copy_(var)
        self.eps = max(FLOOR * var.mean().item(), 1e-5)

    def get_extra_state(self) -> Tensor:
        """``eps``, so that a checkpoint holds all that the layer computes with."""
        return torch.tensor(self.eps, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Take ``eps`` over."""
        self.eps = float(state)


class PostNorm1d(_PostNorm, nn.BatchNorm1d):
    """Behind a fully connected layer."""


class PostNorm2d(_PostNorm, nn.BatchNorm2d):
    """Behind a convolution."""
