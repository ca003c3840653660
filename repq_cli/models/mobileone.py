"""MobileOne (arXiv 2206.04040): MobileNet v1's pairs of a depthwise and a pointwise block, of other widths."""

from __future__ import annotations

from typing import Annotated

from repq_cli.bounds import Range
from repq_cli.models.activation import Activation
from repq_cli.models.mobilenet import MobileNetV1
from repq_cli.reparam.block import MakeBlock

STAGES = ((64, 2), (128, 8), (256, 10), (512, 1))  # channels and pairs: table 2
STEM_WIDTH = 64


def mobileone(
    make_block: MakeBlock,
    in_channels: int,
    num_classes: int,
    widths: list[Annotated[float, Range(0, None, open_low=True)]],
    strides: list[Annotated[int, Range(1)]],
    width: Annotated[float, Range(0, None, open_low=True)] = 1.0,
    activation: Activation | None = None,
    squeeze_excite: list[Annotated[int, Range(0)]] | None = None,
) -> MobileNetV1:
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
    return MobileNetV1(make_block, in_channels, channels, all_strides, num_classes, activation or "relu", excited)
