"""``rep=acnet``: a square kernel and its middle row and column, each with its own batch norm (arXiv 1908.03930)."""

from __future__ import annotations

from typing import Annotated

from torch import nn

from repq_cli.bounds import Range
from repq_cli.reparam.algebra import Geometry
from repq_cli.reparam.block import Block
from repq_cli.reparam.branch import ConvBranch


def acnet_block(
    geometry: Geometry,
    activation: nn.Module | None = None,
    batch_norm: bool = True,
    gamma_init: Annotated[float, Range(0)] = 1.0,
    single_init: bool = False,
) -> Block:
    """``activation(BN_s(x * W_s) + BN_h(x * W_h) + BN_v(x * W_v))`` with ``W_s: kxk``, ``W_h: 1xk``, ``W_v: kx1``.

    batch_norm: without it the square branch has a bias instead.
    gamma_init: initial gamma of all batch norms, 1 in the ImageNet recipe and 1/3 in the CIFAR ones.
    single_init: start as the square branch alone (gamma 1, the others 0).
    Raises ValueError for a 1x1 convolution, which has neither rows nor columns.
    """
    size = geometry.kernel_size
    if size == 1:
        raise ValueError(
            "rep=acnet adds a middle row and column, which a 1x1 kernel does not have: leave 1 out of rep.kernels."
        )
    branches = {
        "square": ConvBranch(geometry, batch_norm=batch_norm, bias=not batch_norm),
        "row": ConvBranch(geometry, (1, size), batch_norm),
        "column": ConvBranch(geometry, (size, 1), batch_norm),
    }
    for name, branch in branches.items():
        if branch.norm is None:
            if single_init and name != "square":
                nn.init.zeros_(branch.conv.weight)
            continue
        nn.init.constant_(branch.norm.weight, float(name == "square") if single_init else gamma_init)
    return Block(geometry, branches, activation, "acnet")
