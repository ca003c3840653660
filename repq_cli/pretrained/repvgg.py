"""RepVGG's published layouts, read in DingXiaoH/RepVGG, cxxgtxy/QARepVGG and timm's ``byobnet.py``."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from repq_cli.models.repvgg import RepVGG
from repq_cli.pretrained.layout import (
    Layout,
    Pairs,
    Source,
    all_plain,
    blocks_of,
    branches_of,
    linear,
    merged_conv,
    norm,
)
from repq_cli.reparam.branch import ConvBranch, IdentityBranch


def official(family: str, net: nn.Module) -> Layout | None:
    """Of RepVGG and of QARepVGG in all its variants: a batch norm behind the sum is the only new key."""
    if not isinstance(net, RepVGG) or net.squeeze_excite:
        return None
    stages = net.stage_names()
    if all_plain(net):
        return _merged(net, [f"{stage}.rbr_reparam" for stage in stages], "linear")
    return _branched(net, family, stages, lambda name: f"rbr_{'1x1' if name == 'point' else name}", "linear")


TIMM_BRANCHES = {"dense": "conv_kxk", "point": "conv_1x1", "identity": "identity"}


def timm(net: nn.Module) -> Layout | None:
    """``stem``, ``stages.0.0``, …: timm counts the stages behind the stem from zero."""
    if not isinstance(net, RepVGG) or net.squeeze_excite:
        return None
    places = (f"stages.{stage}.{place}" for stage, count in enumerate(net.stages[1:]) for place in range(count))
    stages = ["stem", *places]
    if all_plain(net):
        return _merged(net, [f"{stage}.reparam_conv" for stage in stages], "head.fc")
    return _branched(net, "repvgg", stages, TIMM_BRANCHES.__getitem__, "head.fc")


def _merged(net: RepVGG, theirs: list[str], head: str) -> Layout:
    pairs = (pair for index, key in enumerate(theirs) for pair in merged_conv(net, f"blocks.{index}", key))
    return Layout({**dict(pairs), **dict(linear("classifier", head))}, merged=True)


def _branched(
    net: RepVGG, family: str, stages: list[str], branch_name: Callable[[str], str], head: str
) -> Layout | None:
    if any(block.kind.split()[0] != family or not block.has_batch_norm for block in blocks_of(net)):
        return None

    def pairs() -> Pairs:
        for index, (block, stage) in enumerate(zip(net.blocks, stages, strict=True)):
            ours, branches = f"blocks.{index}.branches", branches_of(block)
            if "sum" in branches:
                yield from norm(f"{ours}.sum.norm", f"{stage}.bn")
                ours, branches = f"{ours}.sum.branches", branches_of(branches["sum"])
            for name, branch in branches.items():
                yield from _branch(f"{ours}.{name}", f"{stage}.{branch_name(name)}", branch)
        yield from linear("classifier", head)

    return Layout(dict(pairs()))


def _branch(ours: str, theirs: str, branch: nn.Module) -> Pairs:
    if isinstance(branch, IdentityBranch):
        yield from norm(f"{ours}.norm", theirs) if branch.norm is not None else ()
        return
    assert isinstance(branch, ConvBranch)
    if branch.norm is None:
        yield f"{ours}.conv.weight", Source(f"{theirs}.weight")
    else:
        yield f"{ours}.conv.weight", Source(f"{theirs}.conv.weight")
        yield from norm(f"{ours}.norm", f"{theirs}.bn")
