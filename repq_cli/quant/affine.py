"""``affine``: integer-arithmetic-only quantization ``r = S (q - Z)`` (arXiv 1712.05877), 2 to 8 bits."""

from __future__ import annotations

import torch
from torch import Tensor

from repq_cli import collective
from repq_cli.quant.binary import shared_dims
from repq_cli.quant.functional import (
    Grid,
    affine_fake_quantize,
    integer_range,
    nudged_grid,
)
from repq_cli.quant.init import Initialiser
from repq_cli.quant.quantizer import Quantizer


class AffineWeight(Quantizer):
    """The range of a weight is its minimum and maximum, anew at every step; codes ``-127..127`` at 8 bits.

    Without -128 the sum of two products of codes fits into 16 bits (arXiv 1712.05877, section 3.1 and appendix B).
    """

    signed = True

    def __init__(self, bits: int, per_channel: bool = False) -> None:
        super().__init__()
        self.bits, self.per_channel = bits, per_channel
        self.codes = integer_range(bits, signed=True, symmetric=True)

    def grid(self, values: Tensor) -> Grid:
        """The nudged grid from minimum to maximum, per output channel or for the tensor."""
        values, dims = values.detach(), shared_dims(values, self.per_channel)
        return nudged_grid(values.amin(dims, keepdim=True), values.amax(dims, keepdim=True), self.codes)

    def fake_quantize(self, values: Tensor) -> Tensor:
        return affine_fake_quantize(values, self.grid(values), self.codes)


class AffineActivation(Quantizer):
    """The range of an activation is a moving average of its batches' minima and maxima; codes ``0..2^b-1``.

    momentum: of the average, ``range = momentum * range + (1 - momentum) * batch``.
    delay: training steps before activations are quantized; the range is observed all the while, and eval mode always
        quantizes. Source: arXiv 1712.05877, section 3.1.
    """

    signed = True  # by its zero-point
    low: Tensor
    high: Tensor
    steps_seen: Tensor

    def __init__(self, bits: int, momentum: float = 0.99, delay: int = 0) -> None:
        super().__init__()
        self.bits, self.momentum, self.delay = bits, momentum, delay
        self.codes = integer_range(bits, signed=False)
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.ones(()))
        self.register_buffer("steps_seen", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def calibrate(self, values: Tensor, initialiser: Initialiser = "min_error") -> None:
        """Start the average with the range of ``values``, whatever ``initialiser`` says of steps."""
        self.low.copy_(values.amin())
        self.high.copy_(values.amax())

    def step(self) -> Tensor:
        """The scale S."""
        return self.grid(self.low).step

    def grid(self, values: Tensor) -> Grid:
        """The nudged grid of the average range."""
        return nudged_grid(self.low, self.high, self.codes)

    def fake_quantize(self, values: Tensor) -> Tensor:
        if self.training:
            self._observe(values)
        quantized = affine_fake_quantize(values, self.grid(values), self.codes)
        if not (self.training and self.delay):
            return quantized
        return torch.where(
            self.steps_seen <= self.delay, values, quantized
        )  # a look at the count would make a GPU wait

    @torch.no_grad()
    def _observe(self, values: Tensor) -> None:
        """Move the average and count the training step."""
        low, high = collective.extremes(*values.aminmax())
        self.low.lerp_(low, 1 - self.momentum)
        self.high.lerp_(high, 1 - self.momentum)
        self.steps_seen += 1
