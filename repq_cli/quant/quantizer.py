"""What every quantizer can do."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repq_cli.quant.functional import IntegerRange
from repq_cli.quant.init import Initialiser


class Quantizer(nn.Module):
    """Parameters plus a pure function: ``forward`` fake-quantizes, and equals ``integers * step_for`` bit for bit."""

    bits: int
    signed: bool
    codes: IntegerRange

    def calibrate(self, values: Tensor, initialiser: Initialiser = "min_error") -> None:
        """Set the steps from a tensor: the merged kernel, or the first batch of an activation."""
        raise NotImplementedError

    def step(self) -> Tensor:
        """The steps, all positive."""
        raise NotImplementedError

    def step_for(self, values: Tensor) -> Tensor:
        """The steps in a shape that broadcasts against ``values``."""
        raise NotImplementedError

    def integers(self, values: Tensor) -> Tensor:
        """The codes of ``values``, in their dtype."""
        raise NotImplementedError


class NoQuantizer(Quantizer):
    """32 bit: the tensor itself."""

    bits = 32
    signed = True

    def calibrate(self, values: Tensor, initialiser: Initialiser = "min_error") -> None:
        """Nothing to set."""

    def forward(self, values: Tensor) -> Tensor:
        return values


def quantizers(net: nn.Module) -> dict[str, Quantizer]:
    """Every quantizer of a network that does quantize, by module name."""
    return {name: module for name, module in net.named_modules() if isinstance(module, Quantizer) and module.bits < 32}


@torch.no_grad()
def step_sizes(net: nn.Module) -> dict[str, Tensor]:
    """Every quantizer's steps by module name."""
    return {name: quantizer.step() for name, quantizer in quantizers(net).items()}
