"""ResNet of basic blocks (arXiv 1512.03385): two 3x3 convolutions and a shortcut around them."""

from __future__ import annotations

from typing import Annotated, Literal

from torch import Tensor, nn

from repq_cli.bounds import Range
from repq_cli.models.activation import Activation, gives_signs, make_activation
from repq_cli.models.classifier import Classifier
from repq_cli.models.tap import Shortcut, Tap, layer
from repq_cli.reparam.algebra import Geometry
from repq_cli.reparam.block import MakeBlock

STAGE_WIDTHS = (64, 128, 256, 512)
STEMS = {"imagenet": (7, 2), "cifar": (3, 1)}  # kernel size and stride


class BasicBlock(nn.Module):
    """``relu(conv2(relu(conv1(x))) + shortcut(x))``; a 1x1 convolution is the shortcut where shapes differ."""

    def __init__(
        self, make_block: MakeBlock, in_channels: int, out_channels: int, stride: int, activation: Activation
    ) -> None:
        super().__init__()
        signed = gives_signs(activation)
        self.tap1, self.tap2 = Tap(signed), Tap(signed)
        with layer("conv1"):
            self.conv1 = make_block(Geometry(in_channels, out_channels, stride=stride), make_activation(activation))
        with layer("conv2"):
            self.conv2 = make_block(Geometry(out_channels, out_channels), None)
        self.sum_tap = Tap(signed=True, summand=True)
        if stride == 1 and in_channels == out_channels:
            self.shortcut: nn.Module = Shortcut()
            self.shortcut_tap: nn.Module = nn.Identity()
        else:
            with layer("shortcut"):
                self.shortcut = make_block(Geometry(in_channels, out_channels, 1, stride, 0), None)
            self.shortcut_tap = Tap(signed=True, summand=True)
        self.activation = make_activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        codes = self.tap1(x)
        y = self.conv1(codes, x)
        residual = self.sum_tap(self.conv2(self.tap2(y), y))
        return self.activation(residual + self.shortcut_tap(self.shortcut(codes, x)))


class ResNet(Classifier):
    """Stem, stages of basic blocks, global average pooling and a classifier."""

    def __init__(
        self,
        make_block: MakeBlock,
        in_channels: int,
        widths: list[int],
        blocks: list[int],
        stem: Literal["imagenet", "cifar"],
        num_classes: int,
        activation: Activation = "relu",
    ) -> None:
        """``widths`` and ``blocks``: channels and number of blocks of each stage; all but the first halve the map."""
        super().__init__()
        size, stride = STEMS[stem]
        self.stem_tap = Tap(signed=True)
        with layer("stem"):
            self.stem = make_block(
                Geometry(in_channels, widths[0], size, stride, size // 2), make_activation(activation)
            )
        self.max_pool = nn.MaxPool2d(3, 2, 1) if stem == "imagenet" else nn.Identity()
        self.stages = nn.Sequential()
        before = widths[0]
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            row = nn.Sequential()
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                with layer(f"stages.{stage}.{index}"):
                    row.append(BasicBlock(make_block, before, width, stride, activation))
                before = width
            self.stages.append(row)
        self.add_head(before, num_classes, gives_signs(activation))

    def forward(self, x: Tensor) -> Tensor:
        x = self.max_pool(self.stem(self.stem_tap(x), x))
        return self.classify(self.stages(x))

    def edges(self) -> frozenset[str]:
        """The first and the last layer and the tensors that they read: by convention kept at 8 bit."""
        return frozenset({"stem_tap", "stem", "classifier_tap", "classifier"})


def resnet(
    make_block: MakeBlock,
    in_channels: int,
    num_classes: int,
    blocks: list[Annotated[int, Range(1, 1000)]],
    stem: Literal["imagenet", "cifar"] = "imagenet",
    width: Annotated[float, Range(0, None, open_low=True)] = 1.0,
    activation: Activation | None = None,
) -> ResNet:
    """ResNet with ``blocks[s]`` basic blocks in stage s of ``(64, 128, 256, 512)[s] * width`` channels.

    stem: 7x7 of stride 2 and max pooling (``imagenet``), or 3x3 of stride 1 for small images (``cifar``).
    activation: behind every convolution and sum; the paper's is ReLU.
    Differs from torchvision's in names, which ``pretrained/resnet.py`` translates, and in initial weights: torch's own
    default for convolutions, as in the published code of ACNet and OREPA.
    """
    if len(blocks) != len(STAGE_WIDTHS):
        raise ValueError(f"ResNet has four stages: model.blocks takes 4 numbers, not {len(blocks)}.")
    widths = [max(1, int(base * width)) for base in STAGE_WIDTHS]
    return ResNet(make_block, in_channels, widths, blocks, stem, num_classes, activation or "relu")
