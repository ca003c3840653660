"""``sign``: -1 and 1 without a scale (BinaryConnect, BNN); ``bwn``: with the mean magnitude as scale (XNOR-Net)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from repq_cli.quant.functional import (
    Grid,
    IntegerRange,
    binarize,
    binary_fake_quantize,
    mean_magnitude,
    scaled_binary_fake_quantize,
)
from repq_cli.quant.quantizer import Quantizer


class SignWeight(Quantizer):
    """``sign(weight)``, in training at random if ``stochastic``; the gradient passes unchanged.

    Float weights are clipped to [-H, H] after every update and do not decay; drawn signs go by ``weight / H``.
    H is 1, or Glorot's coefficient of the layer, see ``glorot_range``.
    Source: arXiv 1511.00363, algorithm 1, and arXiv 1602.02830, algorithm 1, which treat weights alike.
    """

    bits, signed, codes = 1, True, IntegerRange(-1, 1)
    by_sign, scale_free = True, True
    latent_decays = False
    gradient_bound: float | None = None

    def __init__(self, stochastic: bool = False, latent_bound: float = 1.0) -> None:
        super().__init__()
        self.stochastic, self.latent_bound = stochastic, latent_bound

    def grid(self, values: Tensor) -> Grid:
        """Step 1."""
        return Grid(torch.ones((), device=values.device))

    def forward(self, values: Tensor) -> Tensor:
        return binary_fake_quantize(values, self.gradient_bound, self.latent_bound if self._draws else None)

    @property
    def _draws(self) -> bool:
        return self.stochastic and self.training

    def integers(self, values: Tensor) -> Tensor:
        """-1 or 1, in the dtype of ``values``."""
        return binarize(values)


class SignActivation(SignWeight):
    """``sign(activation)``; the gradient passes where the activation lies in [-1, 1] (arXiv 1602.02830, eq. 4)."""

    gradient_bound = 1.0


class ScaledSignWeight(Quantizer):
    """``alpha * sign(weight)``, ``alpha = mean |weight|`` of each filter or of the tensor, anew at every step.

    Source: arXiv 1603.05279, section 3.1. The gradient is the exact chain rule, see ``scaled_binary_fake_quantize``.
    """

    bits, signed, codes, by_sign = 1, True, IntegerRange(-1, 1), True

    def __init__(self, per_filter: bool = True) -> None:
        super().__init__()
        self.per_filter = per_filter

    def grid(self, values: Tensor) -> Grid:
        """``alpha``."""
        return Grid(mean_magnitude(values, shared_dims(values, self.per_filter)))

    def forward(self, values: Tensor) -> Tensor:
        return scaled_binary_fake_quantize(values, shared_dims(values, self.per_filter))

    def integers(self, values: Tensor) -> Tensor:
        """-1 or 1, in the dtype of ``values``."""
        return binarize(values)


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
