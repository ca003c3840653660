"""``sign``: -1 and 1 without a scale (BinaryConnect, BNN); ``bwn``: with the mean magnitude as scale (XNOR-Net)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from repq_cli import collective
from repq_cli.quant.functional import (
    Grid,
    IntegerRange,
    binarize,
    binary_fake_quantize,
    mean_magnitude,
    scaled_binary_fake_quantize,
)
from repq_cli.quant.quantizer import Quantizer


class _Sign(Quantizer):
    """Codes -1 and 1 by sign, whatever the grid."""

    bits, signed, codes, by_sign = 1, True, IntegerRange(-1, 1), True

    def integers_on(self, grid: Grid, values: Tensor) -> Tensor:
        """-1 or 1, in the dtype of ``values``."""
        return binarize(values)


class SignWeight(_Sign):
    """``sign(weight)``, in training at random if ``stochastic``; the gradient passes unchanged.

    Float weights are clipped to [-H, H] after every update and do not decay; drawn signs go by ``weight / H``.
    H is 1, or Glorot's coefficient of the layer, see ``glorot_range``.
    Source: arXiv 1511.00363, algorithm 1, and arXiv 1602.02830, algorithm 1, which treat weights alike.
    Differs from BinaryConnect's code, which gives +-H and scales updates by ``1 / H``: behind a batch norm the first
    changes nothing, and rates are the optimiser's business here.
    """

    scale_free, latent_decays = True, False

    def __init__(self, stochastic: bool = False, latent_bound: float = 1.0) -> None:
        super().__init__()
        self.stochastic, self.latent_bound = stochastic, latent_bound

    def grid(self, values: Tensor) -> Grid:
        """Step 1."""
        return Grid(values.new_ones(()))

    def fake_quantize(self, values: Tensor) -> Tensor:
        draws = self.stochastic and self.training
        return binary_fake_quantize(values, certain=self.latent_bound if draws else None)


class SignActivation(_Sign):
    """``sign(activation)``, in training at random if ``stochastic``: +1 with chance ``clip((x + 1) / 2, 0, 1)``.

    The gradient passes where the activation lies in [-1, 1], as that of hard tanh. Source: arXiv 1602.02830, eqs. 1-4.
    """

    scale_free = True

    def __init__(self, stochastic: bool = False) -> None:
        super().__init__()
        self.stochastic = stochastic

    def grid(self, values: Tensor) -> Grid:
        """Step 1."""
        return Grid(values.new_ones(()))

    def fake_quantize(self, values: Tensor) -> Tensor:
        certain = 1.0 if self.stochastic and self.training else None
        return binary_fake_quantize(values, bound=1.0, certain=certain, draw=collective.uniform_like)


class ScaledSignWeight(_Sign):
    """``alpha * sign(weight)``, ``alpha = mean |weight|`` of each filter or of the tensor, anew at every step.

    Source: arXiv 1603.05279, section 3.1. The gradient is the exact chain rule, see ``scaled_binary_fake_quantize``.
    Differs from the published code, which centres weights over input channels and clamps them to [-1, 1].
    """

    def __init__(self, per_filter: bool = True) -> None:
        super().__init__()
        self.per_filter = per_filter

    def grid(self, values: Tensor) -> Grid:
        """``alpha``."""
        return Grid(mean_magnitude(values, shared_dims(values, self.per_filter)))

    def fake_quantize(self, values: Tensor) -> Tensor:
        return scaled_binary_fake_quantize(values, shared_dims(values, self.per_filter))


def glorot_range(shape: torch.Size) -> float:
    """``sqrt(1.5 / (n_in + n_out))`` for a weight ``[O, I, ...]``, n counting inputs and outputs times the taps.

    The size of freshly initialised weights, from BinaryConnect's published code.
    """
    taps = math.prod(shape[2:])
    return math.sqrt(1.5 / ((shape[0] + shape[1]) * taps))


def shared_dims(values: Tensor, per_filter: bool) -> tuple[int, ...]:
    """The dimensions that share one step: all, or all but the first.

    >>> shared_dims(torch.zeros(4, 3, 3, 3), per_filter=True)
    (1, 2, 3)
    """
    return tuple(range(1 if per_filter else 0, values.dim()))
