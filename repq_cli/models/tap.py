"""Where a network's activation tensors may be quantized."""

from __future__ import annotations

from torch import nn


class Tap(nn.Identity):
    """One activation tensor. QAT puts the tensor's quantizer here, so that all its readers get the same codes.

    ``signed``: whether values below zero occur by construction (an input, a PReLU), never inferred from a batch.
    """

    def __init__(self, signed: bool) -> None:
        super().__init__()
        self.signed = signed
