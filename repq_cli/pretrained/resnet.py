"""ResNet-18's published layouts, read in torchvision (timm has the same), DingXiaoH/ACNet and JUGGHM/OREPA_CVPR2022."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from repq_cli.errors import DataError
from repq_cli.models.mobilenet import MobileNetV2
from repq_cli.models.resnet import BasicBlock, ResNet
from repq_cli.pretrained import mobilenet
from repq_cli.pretrained.layout import (
    Layout,
    Pairs,
    Source,
    all_plain,
    blocks_of,
    branches_of,
    conv_norm,
    is_plain,
    linear,
    merged_conv,
    norm,
    normed,
)
from repq_cli.reparam.block import Block
from repq_cli.reparam.orepa import DeepLinearBranch, frequency_prior


def _basic_blocks(net: ResNet) -> Iterator[tuple[str, int, int, BasicBlock]]:
    for name, block in net.named_modules():
        if isinstance(block, BasicBlock):
            _, stage, index = name.split(".")
            yield name, int(stage), int(index), block


def _kinds(net: ResNet) -> set[str]:
    """The kinds of its 3x3 blocks; an empty set unless they are all of one."""
    kinds = {block.kind for block in blocks_of(net) if block.geometry.sizes == (3, 3)}
    return kinds if len(kinds) == 1 else set()


def torchvision(net: nn.Module) -> Layout | None:
    """Of both nets that torchvision has, and of timm's ResNet."""
    if not all_plain(net) or not normed(net):
        return None
    if isinstance(net, MobileNetV2):
        return Layout(dict(mobilenet.torchvision(net)))
    if not isinstance(net, ResNet):
        return None

    def pairs() -> Pairs:
        yield from conv_norm("stem", "conv1", "bn1")
        for ours, stage, index, block in _basic_blocks(net):
            theirs = f"layer{stage + 1}.{index}"
            for number in (1, 2):
                yield from conv_norm(f"{ours}.conv{number}", f"{theirs}.conv{number}", f"{theirs}.bn{number}")
            if isinstance(block.shortcut, Block):
                yield from conv_norm(f"{ours}.shortcut", f"{theirs}.downsample.0", f"{theirs}.downsample.1")
        yield from linear("classifier", "fc")

    return Layout(dict(pairs()))


BlockPairs = Callable[[str, str], Pairs]


def _staged(net: ResNet, stem: Pairs, block: BlockPairs, shortcut: BlockPairs, behind_conv1: str = "") -> Pairs:
    """The ResNet that ACNet's and OREPA's code share; their blocks and stems differ."""
    yield from stem
    for ours, stage, index, basic in _basic_blocks(net):
        theirs = f"stage{stage + 1}.{index}"
        yield from block(f"{ours}.conv1", f"{theirs}.conv1{behind_conv1}")
        yield from block(f"{ours}.conv2", f"{theirs}.conv2")
        if isinstance(basic.shortcut, Block):
            yield from shortcut(f"{ours}.shortcut", f"{theirs}.shortcut")
    yield from linear("classifier", "linear")


def _named_conv_norm(ours: str, theirs: str) -> Pairs:
    return conv_norm(ours, f"{theirs}.conv", f"{theirs}.bn")


def acnet(net: nn.Module) -> Layout | None:
    """ACNet's blocks, or what they are merged into; its stem and shortcuts keep their batch norm in both."""
    if not isinstance(net, ResNet) or not normed(net):
        return None
    behind = ".acb"  # where a ReLU follows, theirs is a sequence of the two
    if all_plain(net):

        def fused(ours: str, theirs: str) -> Pairs:
            return merged_conv(net, ours, f"{theirs}.fused_conv")

        stem = _named_conv_norm("stem", "conv1")
        return Layout(dict(_staged(net, stem, fused, _named_conv_norm, behind)), merged=True)
    if "acnet" not in _kinds(net):
        return None
    stem = _named_conv_norm("stem", "conv1") if is_plain(net.stem) else _acnet_block("stem", f"conv1{behind}")
    return Layout(dict(_staged(net, stem, _acnet_block, _named_conv_norm, behind)))


def _acnet_block(ours: str, theirs: str) -> Pairs:
    for branch, name in (("square", "square"), ("row", "hor"), ("column", "ver")):
        yield f"{ours}.branches.{branch}.conv.weight", Source(f"{theirs}.{name}_conv.weight")
        yield from norm(f"{ours}.branches.{branch}.norm", f"{theirs}.{name}_bn")


# OREPA: their name of each branch's tensors, and its row in their matrix of scales.
OREPA_TENSORS = {
    "dense": (0, {"conv.weight": "origin"}),
    "average": (1, {"point.weight": "avg_conv"}),
    "frequency": (2, {"point.weight": "pfir_conv"}),
    "point_dense": (3, {"point.parametrizations.weight.original": "1x1_kxk_idconv1", "conv.weight": "1x1_kxk_conv2"}),
    "point": (4, {"conv.weight": "1x1"}),
    "separable": (5, {"depthwise.weight": "gconv_dw", "point.weight": "gconv_pw"}),
}


def orepa(net: nn.Module) -> Layout | None:
    """OREPA's blocks, or what they are merged into, as their ``convert.py`` leaves it."""
    if not isinstance(net, ResNet):
        return None
    if all_plain(net):

        def merged(name: str) -> BlockPairs:
            return lambda ours, theirs: merged_conv(net, ours, f"{theirs}.{name}")

        stem = merged("or_large_reparam")("stem", "stage0.conv1")
        return Layout(dict(_staged(net, stem, merged("orepa_reparam"), merged("conv"))), merged=True)
    if "orepa" not in _kinds(net):
        return None
    sources = dict(_staged(net, _orepa_stem(net), _orepa_block, _named_conv_norm))
    return Layout(sources, dict(_orepa_constants(net, sources)))


def _orepa_stem(net: ResNet) -> Pairs:
    theirs = "stage0.conv1"
    deep = branches_of(net.stem).get("deep")
    if isinstance(deep, DeepLinearBranch):
        if deep.geometry.out_channels % 2:
            raise DataError("A published OREPA stem has an even number of channels: change model.width.")
        for index in range(len(deep.kernels)):
            # Their composition does not flip the second kernel of each pair (ours does, being a convolution of
            # kernels): all but the first are stored the other way round.
            yield from _orepa_kernel(f"stem.branches.deep.kernels.{index}", f"{theirs}.weight{index}", index > 0)
        yield from norm("stem.branches.deep.norm", f"{theirs}.bn")
    elif is_plain(net.stem):
        yield from conv_norm("stem", f"{theirs}.conv", f"{theirs}.bn")
    else:
        yield from _orepa_block("stem", theirs)


def _orepa_block(ours: str, theirs: str) -> Pairs:
    yield from _orepa_kernel(f"{ours}.branches.sum", theirs)
    yield from norm(f"{ours}.branches.sum.norm", f"{theirs}.bn")


def _orepa_kernel(ours: str, theirs: str, flipped: bool = False) -> Pairs:
    for name, (row, tensors) in OREPA_TENSORS.items():
        scale = Source(f"{theirs}.vector", operator.itemgetter(row), _as_row)
        yield f"{ours}.branches.{name}.scale", scale
        for tensor, key in tensors.items():
            change = None
            if flipped:
                change = _flip_frequency if name == "frequency" else _flip
            yield f"{ours}.branches.{name}.branch.{tensor}", Source(f"{theirs}.weight_orepa_{key}", change)


def _as_row(ours: torch.Size) -> torch.Size:
    return torch.Size([len(OREPA_TENSORS), *ours])


def _flip(weight: Tensor) -> Tensor:
    return weight.flip(2, 3)


def _flip_frequency(point: Tensor) -> Tensor:
    """A cosine of frequency f turned round is itself times ``(-1)^f``: the sign goes to the weights before it."""
    prior = frequency_prior(len(point), 3)
    turned = torch.isclose(prior.flip(1, 2), prior, atol=1e-5).all(2).all(1)
    return torch.where(turned.view(-1, 1, 1, 1), point, -point)


def _orepa_constants(net: nn.Module, sources: dict[str, Source]) -> Iterator[tuple[str, Tensor]]:
    """Their filters of averages and frequencies, and their identities: one of each for every kernel."""
    ours = net.state_dict()
    for key, source in sources.items():
        kernel, _, name = source.key.rpartition(".")
        if name == "weight_orepa_origin":
            channels, _, _, size = ours[key].shape
            yield f"{kernel}.weight_orepa_prior", frequency_prior(channels, size)
            yield f"{kernel}.weight_orepa_avg_avg", torch.full((size, size), 1 / size**2)
        elif name == "weight_orepa_1x1_kxk_idconv1":
            width = len(ours[key])
            yield f"{kernel}.id_tensor", torch.eye(width).view(width, width, 1, 1)
