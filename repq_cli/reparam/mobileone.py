"""``rep=mobileone``: the same convolution several times over, 1x1 and identity (arXiv 2206.04040)."""

from __future__ import annotations

from typing import Annotated

from torch import nn

from repq_cli.bounds import Range
from repq_cli.reparam.algebra import Geometry
from repq_cli.reparam.block import Block, Identity, splitting
from repq_cli.reparam.branch import Branch, ConvBranch, IdentityBranch


def mobileone_block(
    geometry: Geometry,
    activation: nn.Module | None = None,
    batch_norm: bool = True,
    branches: Annotated[int, Range(1, 64)] = 4,
    dense_branches: Annotated[int, Range(1, 64)] = 1,
    identity: Identity = True,
) -> Block:
    """``activation(sum_j BN_j(x * W_j) + BN_1(x * W_1x1) [+ BN_id(x)])``.

    The 1x1 branch exists where the kernel is larger, the identity where input and output have one shape.

    branches: how many ``W_j`` a depthwise or a pointwise convolution has, the published ``k``.
    dense_branches: those of all other convolutions; the published networks have one such layer, the stem, with 1.
    identity: ``split`` quantizes it apart from the rest of the merged kernel, see ``quant/split.py``.
    """
    many = geometry.depthwise or geometry.kernel_size == 1
    found: dict[str, Branch] = {
        f"conv{index}": ConvBranch(geometry, batch_norm=batch_norm, bias=not batch_norm)
        for index in range(branches if many else dense_branches)
    }
    if geometry.kernel_size > 1:
        found["point"] = ConvBranch(geometry, (1, 1), batch_norm)
    if geometry.keeps_shape:
        found["identity"] = IdentityBranch(geometry, batch_norm)
    return splitting(Block(geometry, found, activation, "mobileone"), identity)
