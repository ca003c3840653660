"""ECBSR (Zhang et al., ACM Multimedia 2021): 3x3 blocks at low resolution, a pixel shuffle, and the input added."""

from __future__ import annotations

from typing import Annotated, Literal

from torch import Tensor, nn

from repq_cli.bounds import Range
from repq_cli.models.tap import Shortcut, Tap, layer
from repq_cli.reparam.algebra import Geometry
from repq_cli.reparam.block import MakeBlock

SLOPE_INIT = 0.25  # of every PReLU


class ECBSR(nn.Module):
    """``shuffle(tail(body(head(x)))) + nearest(x)``, pixels of 0..255 in and out, ``scale`` times as many.

    Adding the enlarged input equals the published network's sum before the shuffle, for luma and for RGB.
    ``halo``: how many input pixels away an output pixel looks.
    """

    def __init__(
        self, make_block: MakeBlock, colours: int, blocks: int, channels: int, scale: int, activation: str
    ) -> None:
        """``blocks``: between the first and the last, all of ``channels``; each but the last has an activation."""
        super().__init__()
        widths = [colours, *[channels] * (blocks + 1), colours * scale**2]
        last = len(widths) - 2
        self.blocks = nn.ModuleList()
        for index, (before, after) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            with layer(f"blocks.{index}"):
                behind = None if index == last else make_activation(activation, after)
                self.blocks.append(make_block(Geometry(before, after), behind))
        # Pixels are never negative, what a PReLU gives may be.
        signed = activation == "prelu"
        inner = (Tap(signed) for _ in range(last))
        self.taps = nn.ModuleList([Tap(signed=False, pixels=True), *inner])
        self.sum_tap, self.skip = Tap(signed=True, summand=True), Shortcut()
        self.nearest = nn.Upsample(scale_factor=scale, mode="nearest")
        self.shuffle = nn.PixelShuffle(scale)
        self.output_tap = Tap(signed=False, pixels=True, output=True)
        self.halo = len(self.blocks)

    def forward(self, x: Tensor) -> Tensor:
        codes = self.taps[0](x)
        y = self.blocks[0](codes, x)
        for tap, block in zip(self.taps[1:], self.blocks[1:], strict=True):
            y = block(tap(y), y)
        return self.output_tap(self.shuffle(self.sum_tap(y)) + self.nearest(self.skip(codes, x)))

    def edges(self) -> frozenset[str]:
        """The first and the last layer and the tensors that they read: by convention kept at 8 bit."""
        last = len(self.blocks) - 1
        return frozenset({"taps.0", "blocks.0", f"taps.{last}", f"blocks.{last}"})


def make_activation(name: str, channels: int) -> nn.Module:
    """What super-resolution networks have behind a block: a PReLU with a slope for every channel, or a ReLU."""
    return nn.PReLU(channels, SLOPE_INIT) if name == "prelu" else nn.ReLU()


def ecbsr(
    make_block: MakeBlock,
    in_channels: int,
    blocks: Annotated[int, Range(0, 1000)] = 4,
    channels: Annotated[int, Range(1)] = 16,
    scale: Literal[2, 3, 4] = 2,
    colour: Literal["luma", "rgb"] = "luma",
    activation: Literal["prelu", "relu"] = "prelu",
) -> ECBSR:
    """ECBSR-M(blocks)C(channels).

    scale: how many times as many rows and columns come out.
    colour: what the network enlarges: luma alone (chroma is then enlarged bicubically, as published), or RGB.
    activation: a PReLU with a slope for every channel, as published, or ReLU.
    """
    return ECBSR(make_block, in_channels, blocks, channels, scale, activation)
