"""Pixels of 8 bits, which are codes already."""

from __future__ import annotations

from torch import Tensor

from repq_cli.quant.init import Initialiser
from repq_cli.quant.lsq import LSQ


class PixelQuantizer(LSQ):
    """Codes ``0..255`` with a step of 1 that is neither calibrated nor trained: pixels in are exact, pixels out bytes.

    A range learned from random crops would clip the white that they happen to lack.
    """

    clips = True

    def __init__(self) -> None:
        super().__init__(8, signed=False)
        self.raw_step.requires_grad_(False)

    def calibrate(self, values: Tensor, initialiser: Initialiser = "min_error") -> None:
        """The step is 1 whatever the values."""
