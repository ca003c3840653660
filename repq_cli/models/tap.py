"""Where a network's activation tensors may be quantized, and what its shortcuts read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


class Tap(nn.Identity):
    """One activation tensor. QAT puts the tensor's quantizer here, so that all its readers get the same codes.

    ``signed``: whether values below zero occur by construction (an input, a PReLU), never inferred from a batch.
    ``pooled``: whether global average pooling reads it, not a layer.
    ``pixels``: whether it holds pixels of 0..255; ``output``: whether it is what the network gives.
    ``summand``: whether it is only added to another tensor, and so read by no layer.
    """

    def __init__(
        self,
        signed: bool,
        pooled: bool = False,
        pixels: bool = False,
        output: bool = False,
        summand: bool = False,
    ) -> None:
        super().__init__()
        self.signed, self.pooled, self.pixels, self.output, self.summand = signed, pooled, pixels, output, summand


class Shortcut(nn.Module):
    """What a shortcut without a layer of its own reads: the codes, or with ``reads_raw`` the tensor before them."""

    def __init__(self) -> None:
        super().__init__()
        self.reads_raw = False

    def forward(self, codes: Tensor, raw: Tensor) -> Tensor:
        return raw if self.reads_raw else codes


@contextmanager
def layer(name: str) -> Iterator[None]:
    """Name the layer, by its whole path, in the ValueError of a block that cannot be built here."""
    try:
        yield
    except ValueError as error:
        inner = str(error)
        rest = f".{inner.removeprefix('Layer ')}" if inner.startswith("Layer ") else f": {inner}"
        raise ValueError(f"Layer {name}{rest}") from error
