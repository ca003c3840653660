"""RepVGG (arXiv 2101.03697): a stack of 3x3 blocks, global average pooling and a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from torch import Tensor, nn

from repq_cli.bounds import Range
from repq_cli.models.activation import Activation, gives_signs, make_activation
from repq_cli.models.classifier import Classifier
from repq_cli.models.squeeze_excite import with_excitation
from repq_cli.models.tap import Tap, layer
from repq_cli.reparam.algebra import Geometry
from repq_cli.reparam.block import MakeBlock

STAGE_WIDTHS = (64, 128, 256, 512)


class RepVGG(Classifier):
    """Blocks in a chain; ``taps[i]`` is the tensor that ``blocks[i]`` reads."""

    def __init__(
        self,
        make_block: MakeBlock,
        widths: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        stages: Sequence[int],
        groups: int = 1,
        activation: Activation = "relu",
        squeeze_excite: bool = False,
    ) -> None:
        """Build a block for each of ``strides``; ``widths``: channels of the image and of each output.

        stages: how many blocks the stem and each stage have.
        groups: of every second block behind the stem, starting with the second (RepVGG's g2 and g4 networks).
        squeeze_excite: between every block's sum and its activation (RepVGG-D2se).
        """
        super().__init__()
        self.stages, self.squeeze_excite = tuple(stages), squeeze_excite
        self.blocks = nn.ModuleList()
        for index, (before, after, stride) in enumerate(zip(widths[:-1], widths[1:], strides, strict=True)):
            grouped = groups if index > 0 and index % 2 == 0 else 1
            with layer(f"blocks.{index}"):
                geometry = Geometry(before, after, stride=stride, groups=grouped)
                make = with_excitation(make_block) if squeeze_excite else make_block
                self.blocks.append(make(geometry, make_activation(activation)))
        signed = gives_signs(activation)
        self.taps = nn.ModuleList(Tap(signed or index == 0) for index in range(len(strides)))
        self.add_head(widths[-1], num_classes, signed)

    def forward(self, x: Tensor) -> Tensor:
        for tap, block in zip(self.taps, self.blocks, strict=True):
            x = block(tap(x), x)
        return self.classify(x)

    def stage_names(self) -> list[str]:
        """Every block by stage and place, as the published code has it: ``stage0``, ``stage1.0``, ``stage1.1``, …"""
        behind = [f"stage{stage}.{place}" for stage, count in enumerate(self.stages) if stage for place in range(count)]
        return ["stage0", *behind]

    def edges(self) -> frozenset[str]:
        """The first and the last layer and the tensors that they read: by convention kept at 8 bit."""
        stem = "blocks.0.block" if self.squeeze_excite else "blocks.0"
        return frozenset({"taps.0", stem, "classifier_tap", "classifier"})


def repvgg(
    make_block: MakeBlock,
    in_channels: int,
    num_classes: int,
    blocks: list[Annotated[int, Range(1, 1000)]],
    widths: list[Annotated[float, Range(0, None, open_low=True)]],
    strides: list[Annotated[int, Range(1)]],
    width: Annotated[float, Range(0, None, open_low=True)] = 1.0,
    groups: Annotated[int, Range(1)] = 1,
    activation: Activation | None = None,
    squeeze_excite: bool = False,
) -> RepVGG:
    """RepVGG with ``blocks[s]`` blocks in stage s, each stage ``widths[s] * width`` times its base width.

    The stem has one block of ``min(64, 64 * widths[0])`` channels. ``strides`` are the stem's and each stage's
    first block; the paper's are all 2 (224x224 images), small images want fewer. ``groups``: of every second block.
    ``activation``: behind every block; the paper's is ReLU. ``squeeze_excite``: in front of it, as in D2se.
    """
    if len(blocks) != 4 or len(widths) != 4 or len(strides) != 5:
        raise ValueError(
            f"RepVGG has four stages behind its stem: model.blocks and model.widths take 4 numbers and model.strides "
            f"takes 5, not {len(blocks)}, {len(widths)} and {len(strides)}."
        )
    scales = [scale * width for scale in widths]
    channels = [in_channels, max(1, round(min(64, 64 * scales[0])))]
    all_strides = [strides[0]]
    for base, scale, count, stride in zip(STAGE_WIDTHS, scales, blocks, strides[1:], strict=True):
        channels += [max(1, int(base * scale))] * count
        all_strides += [stride] + [1] * (count - 1)
    stages = [1, *blocks]
    return RepVGG(make_block, channels, all_strides, num_classes, stages, groups, activation or "relu", squeeze_excite)
