"""MobileOne (arXiv 2206.04040): pairs of a depthwise 3x3 and a pointwise 1x1 block."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

from torch import Tensor, nn

from repq_cli.bounds import Range
from repq_cli.models.activation import Activation, gives_signs
from repq_cli.models.classifier import Classifier
from repq_cli.models.mobilenet import TappedLayer
from repq_cli.models.squeeze_excite import with_excitation
from repq_cli.models.tap import layer
from repq_cli.reparam.algebra import Geometry
from repq_cli.reparam.block import MakeBlock

STAGES = ((64, 2), (128, 8), (256, 10), (512, 1))  # channels and pairs: table 2
STEM_WIDTH = 64


class MobileOne(Classifier):
    """A 3x3 stem, then pairs of a depthwise and a pointwise block, an activation behind every one."""

    def __init__(
        self,
        make_block: MakeBlock,
        in_channels: int,
        widths: list[int],
        strides: list[int],
        num_classes: int,
        activation: Activation,
        excited: Collection[int] = (),
    ) -> None:
        """``widths`` and ``strides``: of the stem and of each pair; ``excited``: pairs with squeeze-and-excitation."""
        super().__init__()
        signed = gives_signs(activation)
        self.layers = nn.Sequential()
        geometries = [Geometry(in_channels, widths[0], stride=strides[0])]
        for before, after, stride in zip(widths[:-1], widths[1:], strides[1:], strict=True):
            geometries.append(Geometry(before, before, stride=stride, groups=before))
            geometries.append(Geometry(before, after, kernel_size=1, padding=0))
        for index, geometry in enumerate(geometries):
            with layer(f"layers.{index}"):
                make = with_excitation(make_block) if index and (index - 1) // 2 in excited else make_block
                self.layers.append(TappedLayer(make, geometry, signed or index == 0, activation))
        self.add_head(widths[-1], num_classes, signed)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.layers(x))

    def edges(self) -> frozenset[str]:
        """The first and the last layer and the tensors that they read: by convention kept at 8 bit."""
        return frozenset({"layers.0.tap", "layers.0.block", "classifier_tap", "classifier"})


def mobileone(
    make_block: MakeBlock,
    in_channels: int,
    num_classes: int,
    widths: list[Annotated[float, Range(0, None, open_low=True)]],
    strides: list[Annotated[int, Range(1)]],
    width: Annotated[float, Range(0, None, open_low=True)] = 1.0,
    activation: Activation | None = None,
    squeeze_excite: list[Annotated[int, Range(0)]] | None = None,
) -> MobileOne:
    """MobileOne S0 to S4, with ``width`` times their channels.

    widths: multiples of the four stages' 64, 128, 256 and 512 channels.
    strides: of the stem and of each stage's first pair; the paper's are all 2 (224x224 images).
    activation: behind every block; the paper's is ReLU.
    squeeze_excite: of each stage, how many of its last pairs have it; the paper's S4: 0, 0, 5, 1.
    """
    if squeeze_excite is not None and len(squeeze_excite) != len(STAGES):
        raise ValueError(f"MobileOne has four stages: model.squeeze_excite takes 4 numbers, not {len(squeeze_excite)}.")
    if len(widths) != len(STAGES) or len(strides) != 1 + len(STAGES):
        raise ValueError(
            f"MobileOne has four stages behind its stem: model.widths takes 4 numbers and model.strides 5, not "
            f"{len(widths)} and {len(strides)}."
        )
    scales = [scale * width for scale in widths]
    channels, all_strides = [max(1, int(min(STEM_WIDTH, STEM_WIDTH * scales[0])))], [strides[0]]
    excited: list[int] = []
    some = squeeze_excite or [0] * len(STAGES)
    for (base, count), scale, stride, last in zip(STAGES, scales, strides[1:], some, strict=True):
        channels += [max(1, int(base * scale))] * count
        all_strides += [stride] + [1] * (count - 1)
        pairs = len(channels) - 1  # so far
        excited += range(pairs - min(last, count), pairs)
    return MobileOne(make_block, in_channels, channels, all_strides, num_classes, activation or "relu", excited)
