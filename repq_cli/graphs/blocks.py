"""From a linear region to a block of the modules that it was."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from repq_cli.graphs.modules import complete_norm
from repq_cli.graphs.program import Operation
from repq_cli.graphs.regions import SUMS, Region, parts_and_steps
from repq_cli.reparam.block import Block
from repq_cli.reparam.branch import Branch, ConvBranch, IdentityBranch
from repq_cli.reparam.expression import ExpressionBranch, layout_of
from repq_cli.reparam.layout import Layout


def block_of(region: Region, operations: Mapping[str, Operation], kind: str) -> Block:
    """The region as a block: a branch for each addend of its last sum, or one branch.

    Its parameters are those of the region's modules; ``kind``: what it is called where it has several branches.
    """
    layout = region.affine.layout
    terms = _terms(region, operations)
    branches: dict[str, Branch] = {}
    for members in terms:
        branches[_name(members, operations, branches)] = _branch(region.source, members, operations, layout)
    only = next(iter(branches.values()))
    plain = len(branches) == 1 and isinstance(only, ConvBranch)
    alone = sum(isinstance(operations[name].module, nn.Conv2d) for name in region.members) == 1 and not any(
        operations[name].target in SUMS for name in region.members
    )
    block = Block(layout, branches, kind="conv" if plain else "scaled conv" if alone else kind)
    like = next(block.parameters())
    for module in block.modules():
        if isinstance(getattr(module, "like", None), torch.Tensor):
            module.like = like.new_zeros(0)
    return block


def _terms(region: Region, operations: Mapping[str, Operation]) -> list[tuple[str, ...]]:
    """The members of each addend; empty for the source itself. All in one where addends share operations."""
    found: list[tuple[str, ...]] = []
    sums: set[str] = set()

    def split(name: str) -> None:
        operation = operations.get(name)
        if name != region.source and operation is not None and operation.target is operator.add:
            sums.add(name)
            for source in operation.inputs:
                split(source)
        else:
            found.append(_behind(name, region, operations))

    split(region.end)
    members = [name for term in found for name in term]
    distinct = len(set(members)) == len(members) and len(members) + len(sums) == len(region.members)
    return found if distinct and found.count(()) <= 1 else [region.members]


def _behind(name: str, region: Region, operations: Mapping[str, Operation]) -> tuple[str, ...]:
    """The members on which one depends, and itself."""
    wanted = {name} - {region.source}
    for member in reversed(region.members):
        if member in wanted:
            wanted |= set(operations[member].inputs) - {region.source}
    return tuple(member for member in region.members if member in wanted)


def _branch(source: str, members: Sequence[str], operations: Mapping[str, Operation], layout: Layout) -> Branch:
    modules = [operations[name].module for name in members]
    match modules:
        case [] if layout.keeps_shape:
            return IdentityBranch(layout, batch_norm=False)
        case [nn.BatchNorm2d() as norm] if layout.weight_shape == (norm.num_features, 1, 1, 1):
            return ConvBranch.of(layout, _ones(norm), complete_norm(norm))
        case [nn.BatchNorm2d() as norm] if layout.keeps_shape:
            identity = IdentityBranch(layout)
            identity.norm = complete_norm(norm)
            return identity
        case [nn.Conv2d() as conv] if _is_centred(conv, layout):
            return ConvBranch.of(layout, conv, None)
        case [nn.Conv2d() as conv, nn.BatchNorm2d() as norm] if _is_centred(conv, layout):
            return ConvBranch.of(layout, conv, complete_norm(norm))
    parts, steps = parts_and_steps(dict(operations), source, tuple(members), _complete)
    branch = ExpressionBranch(layout.in_channels, parts, steps)
    branch.geometry = layout
    return branch


def _complete(module: nn.Module) -> nn.Module:
    return complete_norm(module) if isinstance(module, nn.BatchNorm2d) else module


def _ones(norm: nn.BatchNorm2d) -> nn.Conv2d:
    """A convolution that does nothing, in front of a batch norm that has none of its own."""
    assert norm.running_mean is not None
    channels = norm.num_features
    conv = nn.Conv2d(channels, channels, 1, groups=channels, bias=False, device="meta")
    conv.weight = nn.Parameter(norm.running_mean.new_ones(channels, 1, 1, 1), requires_grad=False)
    return conv.train(norm.training)


def _is_centred(conv: nn.Conv2d, layout: Layout) -> bool:
    """Whether a convolution walks over its input as a block of this layout walks its smaller, centred kernels."""
    own = layout_of(conv)
    dilated = all(
        mine in (1, theirs) or size == 1
        for mine, theirs, size in zip(own.dilations, layout.dilations, own.sizes, strict=True)
    )
    same = (
        own.strides == layout.strides and own.groups == layout.groups and own.paddings == layout.padding_of(own.sizes)
    )
    exact = all(
        size == 1 or mine == theirs
        for mine, theirs, size in zip(own.dilations, layout.dilations, own.sizes, strict=True)
    )
    centred = all((whole - size) % 2 == 0 for whole, size in zip(layout.sizes, own.sizes, strict=True))
    return dilated and same and exact and centred


def _name(members: Sequence[str], operations: Mapping[str, Operation], taken: Mapping[str, Branch]) -> str:
    """What a branch is called: the module that all of it lies in, below what the block's other branches share."""
    paths = [operations[name].path for name in members if operations[name].module is not None]
    if not paths:
        base = "identity"
    else:
        parts = common(paths).split(".")
        base = "_".join(part for part in parts[-2:] if part) or "branch"
    name, number = base, 1
    while name in taken:
        name, number = f"{base}_{number}", number + 1
    return name


def common(paths: Sequence[str]) -> str:
    """The longest name that all of them begin with; of one module its own.

    >>> common(["stem.conv_kxk.0.conv", "stem.conv_kxk.0.bn"]), common(["conv1", "bn1"])
    ('stem.conv_kxk.0', '')
    """
    split = [path.split(".") for path in paths]
    shared = []
    for row in zip(*split, strict=False):
        if len(set(row)) > 1:
            break
        shared.append(row[0])
    return ".".join(shared)
