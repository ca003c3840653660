"""``rep=repvgg``: kxk, 1x1 and identity, each with its own batch norm (arXiv 2101.03697)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repq_cli.batch_norm import norm_multiplier
from repq_cli.reparam.algebra import Geometry
from repq_cli.reparam.block import Block, Identity, splitting
from repq_cli.reparam.branch import Branch, ConvBranch, IdentityBranch


class RepVGGBlock(Block):
    """``activation(BN_k(x * W_k) + BN_1(x * W_1) [+ BN_id(x)])``.

    The identity branch exists where input and output have one shape: never in the stem, nor at a stage's first block.
    """

    def __init__(self, geometry: Geometry, activation: nn.Module | None = None, batch_norm: bool = True) -> None:
        """Without ``batch_norm`` the kxk branch has a bias instead."""
        branches: dict[str, Branch] = {
            "dense": ConvBranch(geometry, batch_norm=batch_norm, bias=not batch_norm),
            "point": ConvBranch(geometry, (1, 1), batch_norm),
        }
        if geometry.keeps_shape:
            branches["identity"] = IdentityBranch(geometry, batch_norm)
        super().__init__(geometry, branches, activation, "repvgg")

    def custom_l2(self) -> Tensor:
        """RepVGG's own penalty, in place of ``|W_k|^2 + |W_1|^2``; half the weight decay times it joins the loss.

        ``|W_k|^2 - |W_k^c|^2 + sum (W_k^c t_k + W_1 t_1)^2 / (t_k^2 + t_1^2)`` with the centre tap ``W_k^c`` and
        ``t_j = gamma_j / sqrt(var_j + eps)``, not differentiated. It makes merged kernels hard to quantize
        (arXiv 2212.01593). Source: the code published with arXiv 2101.03697.
        """
        (dense, t_dense), (point, t_point) = map(_weight_and_multiplier, self._convolutions())
        middle = self.geometry.sizes[0] // 2
        centre = dense[:, :, middle : middle + 1, middle : middle + 1]
        tiny = torch.finfo(dense.dtype).tiny  # 0 / 0 where both multipliers are zero
        merged = centre * t_dense + point * t_point
        around = dense.square().sum() - centre.square().sum()
        return around + (merged.square() / (t_dense.square() + t_point.square()).clamp_min(tiny)).sum()

    def penalised(self) -> list[nn.Parameter]:
        """The parameters whose weight decay ``custom_l2`` replaces."""
        return [parameter for branch in self._convolutions() for parameter in branch.conv.parameters()]

    def _convolutions(self) -> list[ConvBranch]:
        found = [self.branches["dense"], self.branches["point"]]
        return [branch for branch in found if isinstance(branch, ConvBranch)]


def repvgg_block(
    geometry: Geometry, activation: nn.Module | None = None, batch_norm: bool = True, identity: Identity = True
) -> Block:
    """``RepVGGBlock``.

    identity: ``split`` quantizes it apart from the rest of the merged kernel, see ``quant/split.py``.
    """
    return splitting(RepVGGBlock(geometry, activation, batch_norm), identity)


def _weight_and_multiplier(branch: ConvBranch) -> tuple[Tensor, Tensor]:
    norm = branch.norm
    assert norm is not None and norm.running_var is not None
    multiplier = norm_multiplier(norm.weight, norm.running_var, norm.eps)
    return branch.conv.weight, multiplier.detach().view(-1, 1, 1, 1)


def repvgg_blocks(net: nn.Module) -> list[RepVGGBlock]:
    """The RepVGG blocks of a network, whether it trains in full precision or inside quantized convolutions."""
    return [module for module in net.modules() if isinstance(module, RepVGGBlock)]


def custom_l2(net: nn.Module, weight_decay: float) -> Tensor:
    """Half the weight decay times RepVGG's penalty, summed over its blocks."""
    penalties = torch.stack([block.custom_l2() for block in repvgg_blocks(net)])
    return 0.5 * weight_decay * penalties.sum()
