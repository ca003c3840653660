"""``lsq``: learned step size quantization, 2 to 8 bits (arXiv 1902.08153)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from repq_cli.quant.functional import integer_range, lsq_fake_quantize, quantize
from repq_cli.quant.init import INITIALISERS, Initialiser
from repq_cli.quant.quantizer import Quantizer

SMALLEST_STEP = 1e-8


class LSQ(Quantizer):
    """A tensor's quantizer: learned positive steps, one for the tensor or one per output channel.

    Parameters
        bits      2..8
        signed    codes ``-2^(b-1) .. 2^(b-1)-1``, else ``0 .. 2^b-1``
        channels  None: one step, shape ``[]``; C: one step per slice of dimension 0, shape ``[C]``
        per_sample  count the elements of one sample in the gradient scale (activations), not of the whole tensor

    Source: arXiv 1902.08153. The gradient scale is ``1 / sqrt(N * high)``, with N the elements that share a step.
    """

    def __init__(self, bits: int, signed: bool, channels: int | None = None, *, per_sample: bool = False) -> None:
        super().__init__()
        if not 2 <= bits <= 8:
            raise ValueError(f"LSQ is defined for 2 to 8 bits, not for bits={bits}.")
        self.bits, self.signed, self.channels, self.per_sample = bits, signed, channels, per_sample
        self.codes = integer_range(bits, signed)
        self.raw_step = nn.Parameter(torch.ones(() if channels is None else (channels,)))

    def step(self) -> Tensor:
        """The steps, positive by construction: ``max(|raw_step|, 1e-8)``."""
        return self.raw_step.abs().clamp_min(SMALLEST_STEP)

    def step_for(self, values: Tensor) -> Tensor:
        """The steps in a shape that broadcasts against ``values``."""
        step = self.step()
        return step if self.channels is None else step.view(-1, *[1] * (values.dim() - 1))

    @torch.no_grad()
    def calibrate(self, values: Tensor, initialiser: Initialiser = "min_error") -> None:
        """Set the steps from a tensor: the merged kernel, or the first batch of an activation."""
        rows = values.reshape(1 if self.channels is None else self.channels, -1)
        step = INITIALISERS[initialiser](rows, self.codes)
        self.raw_step.copy_(step.view_as(self.raw_step))

    def forward(self, values: Tensor) -> Tensor:
        count = values[0].numel() if self.per_sample else values.numel() // (self.channels or 1)
        grad_scale = 1 / math.sqrt(count * self.codes.high)
        return lsq_fake_quantize(values, self.step_for(values), self.codes, grad_scale)

    def integers(self, values: Tensor) -> Tensor:
        """The codes of ``values``, in their dtype."""
        return quantize(values, self.step_for(values), self.codes)

    def extra_repr(self) -> str:
        sign = "signed" if self.signed else "unsigned"
        return f"{self.bits} bit, {sign}, {'per tensor' if self.channels is None else 'per channel'}"
