"""SESR (arXiv 2103.09404): super-resolution by collapsible linear blocks, with a long and a short way around them."""

from __future__ import annotations

from typing import Annotated, Literal

from torch import Tensor, nn

from repq_cli.bounds import Range
from repq_cli.models.ecbsr import make_activation
from repq_cli.models.tap import Shortcut, Tap, layer
from repq_cli.reparam.algebra import Geometry
from repq_cli.reparam.block import MakeBlock


class SESR(nn.Module):
    """``shuffle(tail(body(h) + h)) + nearest(x)`` with ``h = head(x)``, pixels of 0..255 in and out.

    ``head`` and ``tail`` are 5x5, the body's blocks 3x3. Adding the enlarged input equals the published network's sum
    before the shuffle; one shuffle by 4 is the published two by 2 with the tail's outputs in another order.
    ``halo``: how many input pixels away an output pixel looks.
    """

    def __init__(
        self, make_block: MakeBlock, colours: int, blocks: int, channels: int, scale: int, activation: str
    ) -> None:
        """``blocks``: of the body; each and the head have an activation."""
        super().__init__()
        signed = activation == "prelu"
        with layer("head"):
            head = Geometry(colours, channels, kernel_size=5, padding=2)
            self.head = make_block(head, make_activation(activation, channels))
        self.body = nn.ModuleList()
        for index in range(blocks):
            with layer(f"body.{index}"):
                self.body.append(make_block(Geometry(channels, channels), make_activation(activation, channels)))
        with layer("tail"):
            self.tail = make_block(Geometry(channels, colours * scale**2, kernel_size=5, padding=2), None)
        self.head_tap, self.tail_tap = Tap(signed=False, pixels=True), Tap(signed)
        self.body_taps = nn.ModuleList(Tap(signed) for _ in range(blocks))
        self.long, self.short = Shortcut(), Shortcut()
        self.nearest = nn.Upsample(scale_factor=scale, mode="nearest")
        self.shuffle = nn.PixelShuffle(scale)
        self.output_tap = Tap(signed=False, pixels=True, output=True)
        self.halo = 4 + blocks

    def forward(self, x: Tensor) -> Tensor:
        pixels = self.head_tap(x)
        first = y = self.head(pixels, x)
        codes = None
        for tap, block in zip(self.body_taps, self.body, strict=True):
            read = tap(y)
            codes = read if codes is None else codes
            y = block(read, y)
        if codes is not None:
            y = y + self.long(codes, first)
        y = self.tail(self.tail_tap(y), y)
        return self.output_tap(self.shuffle(y) + self.nearest(self.short(pixels, x)))

    def edges(self) -> frozenset[str]:
        """The first and the last layer and the tensors that they read: by convention kept at 8 bit."""
        return frozenset({"head_tap", "head", "tail_tap", "tail"})


def sesr(
    make_block: MakeBlock,
    in_channels: int,
    blocks: Annotated[int, Range(0, 1000)] = 5,
    channels: Annotated[int, Range(1)] = 16,
    scale: Literal[2, 3, 4] = 2,
    colour: Literal["luma", "rgb"] = "luma",
    activation: Literal["prelu", "relu"] = "prelu",
) -> SESR:
    """SESR-M(blocks) of 16 channels; SESR-XL has 11 blocks of 32.

    scale: how many times as many rows and columns come out.
    colour: what the network enlarges: luma alone (chroma is then enlarged bicubically, as published), or RGB.
    activation: a PReLU with a slope for every channel, as published, or ReLU.
    """
    return SESR(make_block, in_channels, blocks, channels, scale, activation)
