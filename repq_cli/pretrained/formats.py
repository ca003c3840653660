"""The published layouts by name, and the one that a file's keys look like, whatever net they are wanted for."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

from torch import nn

from repq_cli.models.mobilenet import MobileNetV2
from repq_cli.pretrained import ecbsr, mobilenet, repvgg, resnet
from repq_cli.pretrained.layout import COUNTER, Layout, all_plain, foreign, normed, own

MOST = 0.5  # of a file's keys: a layout that explains no more is not named


@dataclass(frozen=True)
class Format:
    """One layout: its nets in words, what it is for a net of ours, and the pattern of its keys.

    ``mark``: the pattern of the keys that set it apart, at least one of which a file of it has.
    """

    net: str
    layout: Callable[[nn.Module], Layout | None]
    keys: re.Pattern[str]
    mark: re.Pattern[str]


def _format(net: str, layout: Callable[[nn.Module], Layout | None], parts: str, mark: str) -> Format:
    """``parts``: what stands in front of a tensor's own name, such as ``weight``."""
    names = rf"(weight|bias|running_mean|running_var|{COUNTER})"
    return Format(net, layout, re.compile(rf"({parts})\.{names}|({mark}).*"), re.compile(mark))


def _timm(net: nn.Module) -> Layout | None:
    if isinstance(net, MobileNetV2):
        return Layout(dict(mobilenet.timm(net))) if all_plain(net) and normed(net) else None
    return repvgg.timm(net) or resnet.torchvision(net) or foreign(net)


def _torchvision(net: nn.Module) -> Layout | None:
    return resnet.torchvision(net) or foreign(net)


FORMATS: dict[str, Format] = {
    "repq": _format("repq's own net", own, r"[\w.]+\.branches\.[\w.]+|classifier", r"[\w.]+\.branches\.\w+\."),
    # Some variants of QARepVGG have all the keys of RepVGG: the batch norm behind the sum comes first.
    "qarepvgg_official": _format(
        "model=repvgg_* rep=qarepvgg",
        partial(repvgg.official, "qarepvgg"),
        r"stage\d(\.\d+)?\.(rbr_(dense|1x1|identity)(\.conv|\.bn)?|bn)|linear",
        r"stage0\.bn\.weight",
    ),
    "repvgg_official": _format(
        "model=repvgg_* rep=repvgg",
        partial(repvgg.official, "repvgg"),
        r"stage\d(\.\d+)?\.rbr_(dense\.conv|dense\.bn|1x1\.conv|1x1\.bn|identity|reparam)|linear",
        r"stage0\.rbr_(dense\.conv|reparam)\.",
    ),
    "acnet_official": _format(
        "model=resnet18 rep=acnet",
        resnet.acnet,
        r"conv1\.(conv|bn)|stage\d\.\d+\.(conv\d(\.acb)?\.((square|hor|ver)_(conv|bn)|fused_conv)|shortcut\.(conv|bn))"
        r"|linear",
        r"stage1\.0\.conv1\.acb\.(square|fused)_conv\.",
    ),
    "orepa_official": _format(
        "model=resnet18 rep=orepa",
        resnet.orepa,
        r"stage0\.conv1(\.conv|\.bn)?|stage\d\.\d+\.(conv\d(\.bn|\.orepa_reparam)|shortcut\.(conv|bn))|linear",
        r"stage\d\.[\w.]+\.(weight_orepa_|vector$|id_tensor$|orepa_reparam\.|or_large_reparam\.)",
    ),
    "torchvision": _format(
        "model=resnet18 or mobilenet_v2, rep=none; any model=torchvision, rep=own",
        _torchvision,
        r"conv1|bn1|layer\d\.\d+\.((conv|bn)\d|downsample\.\d)|fc|features\.\d+\.([01]|conv(\.\d){1,2})|classifier\.1",
        r"layer1\.0\.conv1\.weight|features\.1\.conv\.0\.0\.weight",
    ),
    "timm": _format(
        "model=repvgg_* rep=repvgg, or model=resnet18 or mobilenet_v2, rep=none; any model=timm, rep=own",
        _timm,
        r"(stem|stages\.\d\.\d+)\.(conv_(kxk|1x1)\.(conv|bn)|identity|reparam_conv)|head\.fc|conv_(stem|head)|bn[12]"
        r"|blocks\.\d\.\d+\.(conv_(pw|dw|pwl)|bn\d)|classifier",
        r"stem\.(conv_kxk\.conv|reparam_conv)\.|conv_stem\.weight",
    ),
    "ecbsr_official": _format(
        "model=ecbsr_* rep=ecb",
        ecbsr.official,
        r"backbone\.\d+\.(conv3x3|act)",
        r"backbone\.\d+\.(conv1x1_|conv3x3\.weight)",
    ),
}

# The names that deploy-mode files have for a block that was merged into one convolution.
MERGED = re.compile(r"\.(rbr_reparam|reparam_conv|fused_conv|orepa_reparam|or_large_reparam|dbb_reparam)\.weight$")
PLAIN_SR = re.compile(r"backbone\.\d+\.conv3x3\.weight$")  # ECBSR's, which keeps the name of the first branch


def merged_keys(keys: Collection[str]) -> list[str]:
    """The convolutions that were merged from branches; empty for a file that has branches, or never had any."""
    branches = any("conv1x1_" in key for key in keys)
    return [key for key in keys if MERGED.search(key) or (PLAIN_SR.search(key) and not branches)]


def recognise(keys: Collection[str]) -> str | None:
    """The format that explains most of ``keys``; None where that is not more than half of them."""
    if not keys:
        return None

    def share(name: str) -> float:
        known = FORMATS[name]
        marked = any(known.mark.match(key) for key in keys)
        return marked * sum(known.keys.fullmatch(key) is not None for key in keys) / len(keys)

    best = max(FORMATS, key=share)
    return best if share(best) > MOST else None
