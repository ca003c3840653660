"""A block: parallel linear branches, then an activation. It trains as many convolutions and ships as one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal, cast

import torch
from torch import Tensor, nn

from repq_cli.precision import full_precision
from repq_cli.reparam.algebra import Geometry, Kernel, add_kernels, convolve, identity_kernel, pad_kernel
from repq_cli.reparam.branch import Branch, IdentityBranch
from repq_cli.reparam.layout import Layout
from repq_cli.reparam.statistics import RunningStatistics, Statistics


class Block(nn.Module):
    """``y = activation(sum_j branch_j(x))``, and the same map as one kernel by ``merged``."""

    def __init__(
        self,
        geometry: Layout,
        branches: Mapping[str, Branch],
        activation: nn.Module | None = None,
        kind: str = "custom",
    ) -> None:
        """``kind``: the name of its family, for people."""
        super().__init__()
        self.kind = kind
        self.geometry = geometry
        self.branches = nn.ModuleDict(branches)
        self.activation = activation or nn.Identity()
        self.merges_first = False
        self.splits_identity = False

    @property
    def has_batch_norm(self) -> bool:
        """Whether one of its branches does, so that its kernel depends on the batch in training."""
        return any(isinstance(module, nn.BatchNorm2d) for module in self.branches.modules())

    def forward(self, x: Tensor, raw: Tensor | None = None) -> Tensor:
        """Run every branch, or, if it ``merges_first``, the one convolution that they are.

        Without batch norm both have the same outputs and gradients, and one convolution is cheaper than several
        (arXiv 2311.05317, section 3.1). ``raw``, which quantized blocks read beside ``x``, equals ``x`` here.
        """
        if self.merges_first:
            weight, bias = self.merged(RunningStatistics())
            return self.activation(convolve(x, weight, self.geometry, bias))
        outputs = [branch(x) for branch in self.branches.values()]
        return self.activation(sum(outputs[1:], outputs[0]))

    def merged(self, statistics: Statistics) -> Kernel:
        """The block's kernel ``[O, I/g, k, k]`` and bias ``[O]``, differentiable in every branch parameter.

        In float32 under autocast as well, like every merge.
        """
        branches = cast("Iterable[Branch]", self.branches.values())
        with full_precision():
            return add_kernels((branch.merged(statistics) for branch in branches), self.geometry.sizes)

    def split_taps(self) -> Tensor | None:
        """Where the merged kernel ``[O, I/g, k, k]`` holds the identity's ones, if that is to be quantized apart."""
        if not (self.splits_identity and any(isinstance(module, IdentityBranch) for module in self.modules())):
            return None
        geometry, like = self.geometry, next(self.parameters())
        ones = identity_kernel(geometry.in_channels, geometry.groups, like)
        return pad_kernel(ones, geometry.sizes) > 0

    @torch.no_grad()
    def to_conv(self) -> nn.Conv2d:
        """A new convolution that equals the branches of this block in eval mode; the block stays as it is."""
        weight, bias = self.merged(RunningStatistics())
        geometry = self.geometry
        conv = nn.Conv2d(
            geometry.in_channels,
            geometry.out_channels,
            geometry.sizes,
            geometry.strides,
            geometry.paddings,
            geometry.dilations,
            groups=geometry.groups,
            device=weight.device,
            dtype=weight.dtype,
        )
        conv.weight.copy_(weight)
        assert conv.bias is not None
        conv.bias.copy_(bias)
        return conv


def merge_first(net: nn.Module, merges: bool = True) -> None:
    """Make every block without batch norm compute its merged kernel and convolve once, or again branch by branch."""
    for block in net.modules():
        if isinstance(block, Block):
            block.merges_first = merges and not block.has_batch_norm


# Whether a block's identity branch is quantized with all others, or apart: see ``quant/split.py``. Who builds a network
# by a configuration decides ``auto`` before (``modes/auto.py``); elsewhere it is True.
Identity = Literal[True, "split", "auto"]


def splitting(block: Block, identity: bool | str) -> Block:
    """``block``, with its identity quantized apart where that is asked for."""
    block.splits_identity = identity == "split"
    return block


# What a model asks of a re-parameterisation: a block for this geometry, with this activation behind it.
MakeBlock = Callable[[Geometry, nn.Module | None], Block]
