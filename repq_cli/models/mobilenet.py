"""MobileNet v1 (arXiv 1704.04861) and v2 (arXiv 1801.04381): depthwise 3x3 and pointwise 1x1 convolutions."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

from torch import Tensor, nn

from repq_cli.bounds import Range
from repq_cli.models.activation import Activation, gives_signs, make_activation
from repq_cli.models.classifier import Classifier
from repq_cli.models.squeeze_excite import MakeAnyBlock, with_excitation
from repq_cli.models.tap import Shortcut, Tap, layer
from repq_cli.reparam.algebra import Geometry
from repq_cli.reparam.block import MakeBlock

# Rows of (output channels, layers): table 1 of the first paper, and with the expansion in front table 2 of the second.
V1_STAGES = ((64, 1), (128, 2), (256, 2), (512, 6), (1024, 2))
V2_STAGES = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))


class TappedLayer(nn.Module):
    """A tensor and the one block that reads it."""

    def __init__(
        self, make_block: MakeAnyBlock, geometry: Geometry, signed: bool, activation: Activation | None
    ) -> None:
        super().__init__()
        self.tap = Tap(signed)
        self.block = make_block(geometry, None if activation is None else make_activation(activation))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.tap(x), x)


def _depthwise(channels: int, stride: int) -> Geometry:
    return Geometry(channels, channels, stride=stride, groups=channels)


def _pointwise(in_channels: int, out_channels: int) -> Geometry:
    return Geometry(in_channels, out_channels, kernel_size=1, padding=0)


class MobileNetV1(Classifier):
    """A 3x3 stem, then pairs of a depthwise and a pointwise convolution."""

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
        with layer("layers.0"):
            stem = Geometry(in_channels, widths[0], stride=strides[0])
            self.layers.append(TappedLayer(make_block, stem, True, activation))
        for pair, (before, after, stride) in enumerate(zip(widths[:-1], widths[1:], strides[1:], strict=True)):
            make = with_excitation(make_block) if pair in excited else make_block
            for geometry in (_depthwise(before, stride), _pointwise(before, after)):
                with layer(f"layers.{len(self.layers)}"):
                    self.layers.append(TappedLayer(make, geometry, signed, activation))
        self.add_head(widths[-1], num_classes, signed)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.layers(x))

    def edges(self) -> frozenset[str]:
        """The first and the last layer and the tensors that they read: by convention kept at 8 bit."""
        return frozenset({"layers.0.tap", "layers.0.block", "classifier_tap", "classifier"})


class InvertedResidual(nn.Module):
    """``x + project(depthwise(expand(x)))`` with a linear projection; the sum where input and output have one shape."""

    def __init__(
        self,
        make_block: MakeBlock,
        in_channels: int,
        out_channels: int,
        stride: int,
        expansion: int,
        activation: Activation,
        signed: bool,
    ) -> None:
        """``signed``: whether the input has values below zero; those of another such block's projection do."""
        super().__init__()
        inner, inner_signed = in_channels * expansion, gives_signs(activation)
        self.tap = Tap(signed)
        self.expand: nn.Module | None = None
        if expansion > 1:
            with layer("expand"):
                expand = _pointwise(in_channels, inner)
                self.expand, self.inner_tap = make_block(expand, make_activation(activation)), Tap(inner_signed)
        with layer("depthwise"):
            self.depthwise = make_block(_depthwise(inner, stride), make_activation(activation))
        self.project_tap = Tap(inner_signed)
        with layer("project"):
            self.project = make_block(_pointwise(inner, out_channels), None)
        self.shortcut: nn.Module | None = None
        if stride == 1 and in_channels == out_channels:
            self.shortcut, self.sum_tap = Shortcut(), Tap(signed=True, summand=True)

    def forward(self, x: Tensor) -> Tensor:
        codes, raw = self.tap(x), x
        if self.expand is None:
            y = self.depthwise(codes, raw)
        else:
            y = self.expand(codes, raw)
            y = self.depthwise(self.inner_tap(y), y)
        y = self.project(self.project_tap(y), y)
        return y if self.shortcut is None else self.sum_tap(y) + self.shortcut(codes, raw)


class MobileNetV2(Classifier):
    """A 3x3 stem, inverted residuals, and a pointwise convolution before the classifier."""

    def __init__(
        self,
        make_block: MakeBlock,
        in_channels: int,
        width: float,
        strides: list[int],
        num_classes: int,
        activation: Activation,
    ) -> None:
        """``strides``: of the stem and of each of the seven stages' first blocks."""
        super().__init__()
        signed = gives_signs(activation)
        before = _divisible_by_8(32 * width)
        with layer("stem"):
            stem = Geometry(in_channels, before, stride=strides[0])
            self.stem = TappedLayer(make_block, stem, True, activation)
        self.blocks = nn.Sequential()
        for (expansion, channels, count), first_stride in zip(V2_STAGES, strides[1:], strict=True):
            after = _divisible_by_8(channels * width)
            for stride in [first_stride] + [1] * (count - 1):
                with layer(f"blocks.{len(self.blocks)}"):
                    signed_here = signed or len(self.blocks) > 0
                    self.blocks.append(
                        InvertedResidual(make_block, before, after, stride, expansion, activation, signed_here)
                    )
                before = after
        last = _divisible_by_8(1280 * max(1.0, width))
        with layer("last"):
            self.last = TappedLayer(make_block, _pointwise(before, last), True, activation)
        self.add_head(last, num_classes, signed)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.last(self.blocks(self.stem(x))))

    def edges(self) -> frozenset[str]:
        """The first and the last layer and the tensors that they read: by convention kept at 8 bit."""
        return frozenset({"stem.tap", "stem.block", "classifier_tap", "classifier"})


def _divisible_by_8(channels: float) -> int:
    """The nearest multiple of 8, but not below 90 % of ``channels``.

    >>> [_divisible_by_8(32 * width) for width in (1.0, 0.75, 0.35, 0.1)]
    [32, 24, 16, 8]
    """
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels else nearest + 8


def mobilenet_v1(
    make_block: MakeBlock,
    in_channels: int,
    num_classes: int,
    strides: list[Annotated[int, Range(1)]],
    width: Annotated[float, Range(0, None, open_low=True)] = 1.0,
    activation: Activation | None = None,
) -> MobileNetV1:
    """MobileNet v1 with ``width`` times the paper's channels.

    strides: of the stem and of the five stages' first pairs; the paper's are 2, 1, 2, 2, 2, 2 (224x224 images).
    activation: behind every convolution; ReLU6 by default, as in the published code.
    """
    if len(strides) != 1 + len(V1_STAGES):
        raise ValueError(f"MobileNet v1 has a stem and five stages: model.strides takes 6 numbers, not {len(strides)}.")
    widths, all_strides = [32], [strides[0]]
    for (channels, count), stride in zip(V1_STAGES, strides[1:], strict=True):
        widths += [channels] * count
        all_strides += [stride] + [1] * (count - 1)
    scaled = [max(1, int(channels * width)) for channels in widths]
    return MobileNetV1(make_block, in_channels, scaled, all_strides, num_classes, activation or "relu6")


def mobilenet_v2(
    make_block: MakeBlock,
    in_channels: int,
    num_classes: int,
    strides: list[Annotated[int, Range(1)]],
    width: Annotated[float, Range(0, None, open_low=True)] = 1.0,
    activation: Activation | None = None,
) -> MobileNetV2:
    """MobileNet v2 as torchvision has it, with ``width`` times its channels, rounded to multiples of 8.

    strides: of the stem and of the seven stages; the paper's are 2, 1, 2, 2, 2, 1, 2, 1 (224x224 images).
    activation: behind every convolution but the projections; the paper's is ReLU6.
    Differs from torchvision's in names, in initial weights, and in having no dropout before the classifier.
    """
    if len(strides) != 1 + len(V2_STAGES):
        raise ValueError(
            f"MobileNet v2 has a stem and seven stages: model.strides takes 8 numbers, not {len(strides)}."
        )
    return MobileNetV2(make_block, in_channels, width, strides, num_classes, activation or "relu6")
