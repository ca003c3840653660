"""Published state dicts in our networks: which of their keys is which of ours.

Key lists were read in the projects' own code: torchvision (ResNet, MobileNet v2), DingXiaoH/RepVGG and DingXiaoH/ACNet,
cxxgtxy/QARepVGG, JUGGHM/OREPA_CVPR2022.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from repq_cli.errors import DataError
from repq_cli.models.mobilenet import MobileNetV2
from repq_cli.models.repvgg import RepVGG
from repq_cli.models.resnet import BasicBlock, ResNet
from repq_cli.reparam.block import Block
from repq_cli.reparam.branch import ConvBranch, IdentityBranch, SumBranch
from repq_cli.reparam.orepa import DeepLinearBranch, frequency_prior

Transform = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Source:
    """Where one of our tensors comes from: a key of theirs, and what has to be done to it.

    ``stacked``: theirs holds so many of ours along its first dimension.
    """

    key: str
    transform: Transform | None = None
    stacked: int | None = None

    def read(self, state: dict[str, Tensor]) -> Tensor:
        """Our tensor."""
        tensor = state[self.key]
        return tensor if self.transform is None else self.transform(tensor)

    def shape(self, ours: Tensor) -> torch.Size:
        """The shape that theirs must have."""
        return ours.shape if self.stacked is None else torch.Size([self.stacked, *ours.shape])


@dataclass(frozen=True)
class Layout:
    """``sources``: for each key of ours; ``constants``: endings of their buffers that we compute ourselves."""

    sources: dict[str, Source]
    constants: tuple[str, ...] = ()

    def ignores(self, key: str) -> bool:
        """Whether a key of theirs needs no place here."""
        return key.endswith(self.constants) if self.constants else False


@dataclass(frozen=True)
class Format:
    """One published layout: its nets, in words and as a function, and sets of key endings that give it away."""

    net: str
    layout: Callable[[nn.Module], Layout | None]
    marks: tuple[tuple[str, ...], ...]


def convert(net: nn.Module, state: dict[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Their tensors under our keys. Counters of batches that they leave out keep our value."""
    ours = net.state_dict()
    found = {key: source.read(state) for key, source in layout.sources.items() if source.key in state}
    return {key: found.get(key, value) for key, value in ours.items()}


def recognise(keys: Iterable[str]) -> str | None:
    """The format most of whose marks occur among the ends of ``keys``; None if no format has one."""
    listed = list(keys)

    def share(name: str) -> float:
        return max(
            sum(any(key.endswith(mark) for key in listed) for mark in marks) / len(marks)
            for marks in FORMATS[name].marks
        )

    best = max(FORMATS, key=share)
    return best if share(best) > 0 else None


Pairs = Iterator[tuple[str, Source]]
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def _norm(ours: str, theirs: str) -> Pairs:
    return ((f"{ours}.{name}", Source(f"{theirs}.{name}")) for name in NORM)


def _linear(ours: str, theirs: str) -> Pairs:
    return ((f"{ours}.{name}", Source(f"{theirs}.{name}")) for name in ("weight", "bias"))


def _conv_norm(ours: str, conv: str, norm: str) -> Pairs:
    """An ordinary convolution of ours: ``ours`` names its block."""
    yield f"{ours}.branches.conv.conv.weight", Source(f"{conv}.weight")
    yield from _norm(f"{ours}.branches.conv.norm", norm)


def _blocks(net: nn.Module) -> list[Block]:
    return [module for module in net.modules() if isinstance(module, Block)]


def _branches(of: nn.Module) -> dict[str, nn.Module]:
    """The branches of a block or of a sum."""
    assert isinstance(of, Block | SumBranch)
    return dict(of.branches.items())


def _is_plain(block: nn.Module) -> bool:
    return isinstance(block, Block) and list(block.branches) == ["conv"]


# RepVGG and QARepVGG


def _repvgg(family: str, net: nn.Module) -> Layout | None:
    """Of RepVGG and of QARepVGG in all its variants: a batch norm behind the sum is the only new key."""
    if not isinstance(net, RepVGG) or any(block.kind.split()[0] != family for block in _blocks(net)):
        return None
    return Layout(dict(_repvgg_pairs(net)))


def _repvgg_pairs(net: RepVGG) -> Pairs:
    for index, (block, stage) in enumerate(zip(net.blocks, net.stage_names(), strict=True)):
        ours, branches = f"blocks.{index}.branches", _branches(block)
        if "sum" in branches:
            yield from _norm(f"{ours}.sum.norm", f"{stage}.bn")
            ours, branches = f"{ours}.sum.branches", _branches(branches["sum"])
        for name, branch in branches.items():
            theirs = f"{stage}.rbr_{'1x1' if name == 'point' else name}"
            if isinstance(branch, IdentityBranch):
                yield from _norm(f"{ours}.{name}.norm", theirs) if branch.norm is not None else ()
                continue
            assert isinstance(branch, ConvBranch)
            if branch.norm is None:
                yield f"{ours}.{name}.conv.weight", Source(f"{theirs}.weight")
            else:
                yield f"{ours}.{name}.conv.weight", Source(f"{theirs}.conv.weight")
                yield from _norm(f"{ours}.{name}.norm", f"{theirs}.bn")
    yield from _linear("classifier", "linear")


# ResNets


def _basic_blocks(net: ResNet) -> Iterator[tuple[str, int, int, BasicBlock]]:
    for name, block in net.named_modules():
        if isinstance(block, BasicBlock):
            _, stage, index = name.split(".")
            yield name, int(stage), int(index), block


def _kinds(net: ResNet) -> set[str]:
    """The kinds of its 3x3 blocks; an empty set unless they are all of one."""
    kinds = {block.kind for block in _blocks(net) if block.geometry.kernel_size == 3}
    return kinds if len(kinds) == 1 else set()


def _torchvision(net: nn.Module) -> Layout | None:
    if isinstance(net, MobileNetV2) and all(map(_is_plain, _blocks(net))):
        return Layout(dict(_mobilenet_v2(net)))
    if not isinstance(net, ResNet) or not all(map(_is_plain, _blocks(net))):
        return None

    def pairs() -> Pairs:
        yield from _conv_norm("stem", "conv1", "bn1")
        for ours, stage, index, block in _basic_blocks(net):
            theirs = f"layer{stage + 1}.{index}"
            for number in (1, 2):
                yield from _conv_norm(f"{ours}.conv{number}", f"{theirs}.conv{number}", f"{theirs}.bn{number}")
            if isinstance(block.shortcut, Block):
                yield from _conv_norm(f"{ours}.shortcut", f"{theirs}.downsample.0", f"{theirs}.downsample.1")
        yield from _linear("classifier", "fc")

    return Layout(dict(pairs()))


def _mobilenet_v2(net: MobileNetV2) -> Pairs:
    yield from _conv_norm("stem.block", "features.0.0", "features.0.1")
    for index, block in enumerate(net.blocks, start=1):
        ours, theirs = f"blocks.{index - 1}", f"features.{index}.conv"
        inner = [name for name in ("expand", "depthwise") if getattr(block, name) is not None]
        for place, name in enumerate(inner):
            yield from _conv_norm(f"{ours}.{name}", f"{theirs}.{place}.0", f"{theirs}.{place}.1")
        yield from _conv_norm(f"{ours}.project", f"{theirs}.{len(inner)}", f"{theirs}.{len(inner) + 1}")
    last = f"features.{len(net.blocks) + 1}"
    yield from _conv_norm("last.block", f"{last}.0", f"{last}.1")
    yield from _linear("classifier", "classifier.1")


def _staged(net: ResNet, stem: Pairs, block_pairs: Callable[[str, str], Pairs], behind_conv1: str = "") -> Pairs:
    """The ResNet that ACNet's and OREPA's code share; their blocks and stems differ."""
    yield from stem
    for ours, stage, index, block in _basic_blocks(net):
        theirs = f"stage{stage + 1}.{index}"
        yield from block_pairs(f"{ours}.conv1", f"{theirs}.conv1{behind_conv1}")
        yield from block_pairs(f"{ours}.conv2", f"{theirs}.conv2")
        if isinstance(block.shortcut, Block):
            yield from _conv_norm(f"{ours}.shortcut", f"{theirs}.shortcut.conv", f"{theirs}.shortcut.bn")
    yield from _linear("classifier", "linear")


def _acnet(net: nn.Module) -> Layout | None:
    if not isinstance(net, ResNet) or "acnet" not in _kinds(net):
        return None
    block_behind = ".acb"  # where a ReLU follows, theirs is a sequence of the two
    plain = _is_plain(net.stem)
    stem = _conv_norm("stem", "conv1.conv", "conv1.bn") if plain else _acnet_block("stem", f"conv1{block_behind}")
    return Layout(dict(_staged(net, stem, _acnet_block, block_behind)))


def _acnet_block(ours: str, theirs: str) -> Pairs:
    for branch, name in (("square", "square"), ("row", "hor"), ("column", "ver")):
        yield f"{ours}.branches.{branch}.conv.weight", Source(f"{theirs}.{name}_conv.weight")
        yield from _norm(f"{ours}.branches.{branch}.norm", f"{theirs}.{name}_bn")


# OREPA: their name of each branch's tensors, and its row in their matrix of scales.
OREPA_TENSORS = {
    "dense": (0, {"conv.weight": "origin"}),
    "average": (1, {"point.weight": "avg_conv"}),
    "frequency": (2, {"point.weight": "pfir_conv"}),
    "point_dense": (3, {"point.parametrizations.weight.original": "1x1_kxk_idconv1", "conv.weight": "1x1_kxk_conv2"}),
    "point": (4, {"conv.weight": "1x1"}),
    "separable": (5, {"depthwise.weight": "gconv_dw", "point.weight": "gconv_pw"}),
}


def _orepa(net: nn.Module) -> Layout | None:
    if not isinstance(net, ResNet) or "orepa" not in _kinds(net):
        return None
    constants = ("weight_orepa_prior", "weight_orepa_avg_avg", "id_tensor")
    return Layout(dict(_staged(net, _orepa_stem(net), _orepa_block)), constants)


def _orepa_stem(net: ResNet) -> Pairs:
    theirs = "stage0.conv1"
    deep = _branches(net.stem).get("deep")
    if isinstance(deep, DeepLinearBranch):
        if deep.geometry.out_channels % 2:
            raise DataError("A published OREPA stem has an even number of channels: change model.width.")
        for index in range(len(deep.kernels)):
            # Their composition does not flip the second kernel of each pair (ours does, being a convolution of
            # kernels): all but the first are stored the other way round.
            yield from _orepa_kernel(f"stem.branches.deep.kernels.{index}", f"{theirs}.weight{index}", index > 0)
        yield from _norm("stem.branches.deep.norm", f"{theirs}.bn")
    elif _is_plain(net.stem):
        yield from _conv_norm("stem", f"{theirs}.conv", f"{theirs}.bn")
    else:
        yield from _orepa_block("stem", theirs)


def _orepa_block(ours: str, theirs: str) -> Pairs:
    yield from _orepa_kernel(f"{ours}.branches.sum", theirs)
    yield from _norm(f"{ours}.branches.sum.norm", f"{theirs}.bn")


def _orepa_kernel(ours: str, theirs: str, flipped: bool = False) -> Pairs:
    for name, (row, tensors) in OREPA_TENSORS.items():
        yield f"{ours}.branches.{name}.scale", Source(f"{theirs}.vector", operator.itemgetter(row), len(OREPA_TENSORS))
        for tensor, key in tensors.items():
            change = None
            if flipped:
                change = _flip_frequency if name == "frequency" else _flip
            yield f"{ours}.branches.{name}.branch.{tensor}", Source(f"{theirs}.weight_orepa_{key}", change)


def _flip(weight: Tensor) -> Tensor:
    return weight.flip(2, 3)


def _flip_frequency(point: Tensor) -> Tensor:
    """A cosine of frequency f turned round is itself times ``(-1)^f``: the sign goes to the weights before it."""
    prior = frequency_prior(len(point), 3)
    turned = torch.isclose(prior.flip(1, 2), prior, atol=1e-5).all(2).all(1)
    return torch.where(turned.view(-1, 1, 1, 1), point, -point)


FORMATS: dict[str, Format] = {
    # Some variants of QARepVGG have all the keys of RepVGG: the batch norm behind the sum comes first.
    "qarepvgg_official": Format("model=repvgg_* rep=qarepvgg", partial(_repvgg, "qarepvgg"), (("stage0.bn.weight",),)),
    "repvgg_official": Format(
        "model=repvgg_* rep=repvgg", partial(_repvgg, "repvgg"), ((".rbr_dense.conv.weight", ".rbr_1x1.bn.weight"),)
    ),
    "acnet_official": Format("model=resnet18 rep=acnet", _acnet, ((".square_conv.weight", ".ver_conv.weight"),)),
    "orepa_official": Format("model=resnet18 rep=orepa", _orepa, ((".weight_orepa_origin", ".vector"),)),
    "torchvision": Format(
        "model=resnet18 or mobilenet_v2, rep=none",
        _torchvision,
        (("layer1.0.conv1.weight", "fc.weight"), ("features.1.conv.0.0.weight", "classifier.1.weight")),
    ),
}
