"""Every block, branch and geometry of the proofs, in one place."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from repq_cli.reparam.acnet import acnet_block
from repq_cli.reparam.algebra import Geometry
from repq_cli.reparam.block import Block
from repq_cli.reparam.branch import Branch, ConvBranch, IdentityBranch, ScaledBranch, SumBranch
from repq_cli.reparam.dbb import dbb_block
from repq_cli.reparam.ecb import MASKS, EdgeBranch, ecb_block
from repq_cli.reparam.mobileone import mobileone_block
from repq_cli.reparam.orepa import DeepLinearBranch, FrequencyBranch, orepa_block
from repq_cli.reparam.plain import plain_block
from repq_cli.reparam.qarepvgg import qarepvgg_block
from repq_cli.reparam.repvgg import repvgg_block
from repq_cli.reparam.sequential import AverageBranch, PointConvBranch, SeparableBranch, identity_point
from repq_cli.reparam.sesr import sesr_block

MakeAnyBlock = Callable[..., Block]

BLOCKS: dict[str, MakeAnyBlock] = {
    "plain": plain_block,
    "repvgg": repvgg_block,
    "acnet": acnet_block,
    "qarepvgg v1": partial(qarepvgg_block, variant="v1"),
    "qarepvgg v2": qarepvgg_block,
    "qarepvgg v3": partial(qarepvgg_block, variant="v3"),
    "qarepvgg v4": partial(qarepvgg_block, variant="v4"),
    "dbb": dbb_block,
    "orepa": orepa_block,
    "orepa vgg": partial(orepa_block, vgg=True),
    "mobileone": partial(mobileone_block, branches=3, dense_branches=2),
}

# Blocks without any batch norm.
BARE: dict[str, MakeAnyBlock] = {
    "plain": partial(plain_block, batch_norm=False),
    "repvgg": partial(repvgg_block, batch_norm=False),
    "acnet": partial(acnet_block, batch_norm=False),
    "dbb": partial(dbb_block, batch_norm=False),
    "ecb": ecb_block,
    "ecb with identity": partial(ecb_block, identity=True),
    "mobileone": partial(mobileone_block, batch_norm=False, branches=2),
    "sesr": partial(sesr_block, expansion=10),
}

# Every kernel with every stride and every kind of groups, padded to keep the size, and other paddings beside them.
GEOMETRIES = [
    Geometry(inputs, outputs, size, stride, size // 2, groups)
    for size in (1, 3, 5, 7)
    for stride in (1, 2)
    for inputs, outputs, groups in ((4, 4, 1), (4, 6, 1), (6, 4, 2), (4, 4, 4))
] + [
    Geometry(6, 12, groups=6),
    Geometry(10, 10, groups=5),
    Geometry(4, 4, padding=0),
    Geometry(4, 6, padding=0, stride=2),
    Geometry(4, 4, padding=2),
    Geometry(4, 6, kernel_size=5, padding=1, stride=2),
    Geometry(4, 4, kernel_size=7, padding=2),
]


def branches(geometry: Geometry) -> dict[str, Callable[[], Branch]]:
    """How every kind of branch that the geometry allows is made."""

    def point(width: int) -> nn.Conv2d:
        return nn.Conv2d(geometry.in_channels, width, 1, groups=geometry.groups, bias=False)

    outputs, inputs = geometry.out_channels, geometry.in_channels
    conv, bare = partial(ConvBranch, geometry), partial(ConvBranch, geometry, batch_norm=False)
    found: dict[str, Callable[[], Branch]] = {
        "dense": conv,
        "point": partial(conv, (1, 1)),
        "row": partial(conv, (1, geometry.kernel_size)),
        "column": partial(conv, (geometry.kernel_size, 1)),
        "bias": partial(bare, bias=True),
        "bare": bare,
        "average": lambda: AverageBranch(geometry, point(outputs), batch_norm=True),
        "average bare": lambda: AverageBranch(geometry, point(outputs), batch_norm=False),
        "point_dense": lambda: PointConvBranch(geometry, identity_point(geometry, inputs), batch_norm=True),
        "point_dense bare": lambda: PointConvBranch(geometry, point(2 * inputs), batch_norm=False),
        "point_dense biased": lambda: PointConvBranch(
            geometry, nn.Conv2d(inputs, 2 * inputs, 1, groups=geometry.groups), batch_norm=False, bias=True
        ),
        "frequency": lambda: FrequencyBranch(geometry, point(outputs)),
        "separable": lambda: SeparableBranch(geometry, 8),
        "scaled": lambda: ScaledBranch(bare(bias=True), outputs, 0.5),
        "nested": lambda: SumBranch(geometry, {"a": conv(), "b": bare((1, 1))}),
        "linear": lambda: SumBranch(geometry, {"a": bare(bias=True)}),
    }
    if geometry.kernel_size == 3:
        found |= {mask: partial(EdgeBranch, geometry, mask) for mask in MASKS}
    if geometry.keeps_shape:
        found["identity"] = partial(IdentityBranch, geometry)
        found["identity bare"] = partial(IdentityBranch, geometry, batch_norm=False)
        found["average of input"] = partial(AverageBranch, geometry, None, batch_norm=True)
    if geometry.kernel_size >= 7 and geometry.groups == 1:
        found["deep"] = partial(DeepLinearBranch, geometry)
    return found


def legal(make: MakeAnyBlock, geometry: Geometry) -> bool:
    """Whether the block can be built; the reasons it cannot are tests of their own."""
    try:
        make(geometry)
    except ValueError:
        return False
    return True


def cases(blocks: dict[str, MakeAnyBlock], geometries: list[Geometry]) -> dict[str, list[Geometry]]:
    """By block the geometries that it can have."""
    return {name: [geometry for geometry in geometries if legal(make, geometry)] for name, make in blocks.items()}


CASES = cases(BLOCKS, GEOMETRIES)
BARE_CASES = cases(BARE, [geometry for geometry in GEOMETRIES if geometry.kernel_size == 3])
