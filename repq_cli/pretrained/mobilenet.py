"""MobileNet v2's published layouts, read in torchvision and in timm's ``efficientnet.py``."""

from __future__ import annotations

from repq_cli.models.mobilenet import V2_STAGES, InvertedResidual, MobileNetV2
from repq_cli.pretrained.layout import Pairs, conv_norm, linear


def _parts(block: InvertedResidual) -> list[str]:
    """The convolutions of a block, in order."""
    return ["depthwise", "project"] if block.expand is None else ["expand", "depthwise", "project"]


def torchvision(net: MobileNetV2) -> Pairs:
    """``features.0`` is the stem; the projection of a block lies one level higher than the rest of it."""
    yield from conv_norm("stem.block", "features.0.0", "features.0.1")
    for index, block in enumerate(net.blocks, start=1):
        assert isinstance(block, InvertedResidual)
        ours, theirs = f"blocks.{index - 1}", f"features.{index}.conv"
        *inner, project = _parts(block)
        for place, name in enumerate(inner):
            yield from conv_norm(f"{ours}.{name}", f"{theirs}.{place}.0", f"{theirs}.{place}.1")
        yield from conv_norm(f"{ours}.{project}", f"{theirs}.{len(inner)}", f"{theirs}.{len(inner) + 1}")
    last = f"features.{len(net.blocks) + 1}"
    yield from conv_norm("last.block", f"{last}.0", f"{last}.1")
    yield from linear("classifier", "classifier.1")


# A block that does not expand is a depthwise and a pointwise convolution to timm.
TIMM_PARTS = {2: ("conv_dw", "conv_pw"), 3: ("conv_pw", "conv_dw", "conv_pwl")}


def timm(net: MobileNetV2) -> Pairs:
    """``blocks`` by stage and place; each block's batch norms are numbered from one."""
    yield from conv_norm("stem.block", "conv_stem", "bn1")
    places = [(stage, place) for stage, (_, _, count) in enumerate(V2_STAGES) for place in range(count)]
    for index, (block, (stage, place)) in enumerate(zip(net.blocks, places, strict=True)):
        assert isinstance(block, InvertedResidual)
        parts = _parts(block)
        for number, (name, conv) in enumerate(zip(parts, TIMM_PARTS[len(parts)], strict=True), start=1):
            theirs = f"blocks.{stage}.{place}"
            yield from conv_norm(f"blocks.{index}.{name}", f"{theirs}.{conv}", f"{theirs}.bn{number}")
    yield from conv_norm("last.block", "conv_head", "bn2")
    yield from linear("classifier", "classifier")
