"""``rep=qarepvgg``: RepVGG made easy to quantize by a batch norm behind the sum (arXiv 2212.01593)."""

from __future__ import annotations

from typing import Literal

from torch import nn

from repq_cli.reparam.algebra import Geometry
from repq_cli.reparam.block import Block, Identity, splitting
from repq_cli.reparam.branch import Branch, ConvBranch, IdentityBranch, SumBranch

# The branches that keep a batch norm of their own.
NORMED = {"v1": {"dense", "point", "identity"}, "v2": {"dense"}, "v3": {"point"}, "v4": {"identity"}}


def qarepvgg_block(
    geometry: Geometry,
    activation: nn.Module | None = None,
    batch_norm: Literal[True] = True,
    variant: Literal["v1", "v2", "v3", "v4"] = "v2",
    identity: Identity = True,
) -> Block:
    """``activation(BN_post(BN_k(x * W_k) + x * W_1 [+ x]))``, which is variant v2, the paper's choice.

    variant: batch norm on every branch (v1), on kxk (v2), on 1x1 (v3) or on the identity (v4), besides the one behind
    the sum. The identity exists as in RepVGG; the bare 1x1 convolution has no bias, since the last batch norm has one.
    identity: ``split`` quantizes it apart from the rest of the merged kernel, see ``quant/split.py``.
    """
    normed = NORMED[variant]
    branches: dict[str, Branch] = {
        "dense": ConvBranch(geometry, batch_norm="dense" in normed),
        "point": ConvBranch(geometry, (1, 1), batch_norm="point" in normed),
    }
    if geometry.keeps_shape:
        branches["identity"] = IdentityBranch(geometry, batch_norm="identity" in normed)
    block = Block(geometry, {"sum": SumBranch(geometry, branches)}, activation, f"qarepvgg {variant}")
    return splitting(block, identity)
