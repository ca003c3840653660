"""``rep=repvgg``: kxk, 1x1 and identity, each with its own batch norm (arXiv 2101.03697)."""

from __future__ import annotations

from torch import nn

from repq_cli.reparam.algebra import Geometry
from repq_cli.reparam.block import Block
from repq_cli.reparam.branch import Branch, ConvBranch, IdentityBranch


def repvgg_block(geometry: Geometry, activation: nn.Module | None = None) -> Block:
    """``activation(BN_k(x * W_k) + BN_1(x * W_1) [+ BN_id(x)])``.

    The identity branch exists where input and output have one shape: never in the stem, nor at a stage's first block.
    """
    branches: dict[str, Branch] = {"dense": ConvBranch(geometry), "point": ConvBranch(geometry, (1, 1))}
    if geometry.keeps_shape:
        branches["identity"] = IdentityBranch(geometry)
    return Block(geometry, branches, activation)
