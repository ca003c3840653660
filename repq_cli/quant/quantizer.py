"""What every quantizer can do."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repq_cli.precision import in_float32
from repq_cli.quant.functional import Grid, IntegerRange, quantize
from repq_cli.quant.init import Initialiser


class Quantizer(nn.Module):
    """Parameters plus a pure function: ``fake_quantize``, which equals ``grid`` times ``integers`` bit for bit.

    bits, codes  the integers that ``integers`` gives; with ``by_sign`` they are -1 and 1, nothing between
    signed       whether values below zero have codes of their own
    clips        values out of range are meant to be clipped, as pixels are
    scale_free   codes are values: the layer needs a batch norm behind it
    latent_bound, latent_decays  rules for the float weights behind a layer's codes, which the training loop applies:
                 they are clipped to +-bound after every update; whether weight decay may pull at them
    """

    bits: int
    signed: bool
    codes: IntegerRange
    by_sign: bool = False
    clips: bool = False
    scale_free: bool = False
    latent_bound: float | None = None
    latent_decays: bool = True

    def forward(self, values: Tensor) -> Tensor:
        """``fake_quantize``; values of 16 bits, as autocast makes them, are quantized in float32 and rounded after."""
        return self.fake_quantize(in_float32(values)).to(values.dtype)

    def fake_quantize(self, values: Tensor) -> Tensor:
        """What the codes of ``values`` stand for, with the quantizer's gradients."""
        raise NotImplementedError

    def calibrate(self, values: Tensor, initialiser: Initialiser = "min_error") -> None:
        """Set the steps from a tensor: the merged kernel, or the first batch of an activation."""

    def step(self) -> Tensor | None:
        """The steps, all positive; None where they follow the tensor at hand."""
        return None

    def grid(self, values: Tensor) -> Grid:
        """Where the codes of ``values`` lie, in shapes that broadcast against them."""
        raise NotImplementedError

    def integers(self, values: Tensor) -> Tensor:
        """The codes of ``values``, in their dtype."""
        return self.integers_on(self.grid(values), values)

    def integers_on(self, grid: Grid, values: Tensor) -> Tensor:
        """The codes of ``values`` on another grid than their own."""
        return quantize(values, grid, self.codes)

    def beyond(self, rounded: Tensor) -> Tensor:
        """Which values are clipped, given what they were rounded to, in codes."""
        return (rounded < self.codes.low) | (rounded > self.codes.high)

    @property
    def fineness(self) -> int:
        """The largest power of two by which codes can be multiplied and are int8 still, as kernels have them.

        What a sum is worth is that much less there, and so are the multiples that biases are rounded to. 1 for signs,
        whose kernels count bits.

        >>> from repq_cli.quant.lsq import LSQ
        >>> [LSQ(bits, signed=True).fineness for bits in (8, 4, 2, 1)]
        [1, 16, 64, 1]
        """
        largest = max(-self.codes.low - 1, self.codes.high)
        return 1 if self.by_sign else 2 ** (127 // max(largest, 1)).bit_length() // 2

    @property
    def kind(self) -> str:
        """``4 bit, signed``."""
        return f"{self.bits} bit, {'signed' if self.signed else 'unsigned'}"

    def extra_repr(self) -> str:
        return self.kind


class NoQuantizer(Quantizer):
    """32 bit: the tensor itself."""

    bits = 32
    signed = True

    def fake_quantize(self, values: Tensor) -> Tensor:
        return values


def quantizers(net: nn.Module) -> dict[str, Quantizer]:
    """Every quantizer of a network that does quantize, by module name."""
    return {name: module for name, module in net.named_modules() if isinstance(module, Quantizer) and module.bits < 32}


@torch.no_grad()
def step_sizes(net: nn.Module) -> dict[str, Tensor]:
    """The steps of every quantizer that has its own, by module name."""
    steps = {name: quantizer.step() for name, quantizer in quantizers(net).items()}
    return {name: step for name, step in steps.items() if step is not None}
