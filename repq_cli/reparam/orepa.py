"""``rep=orepa``: linear branches that are merged before every convolution, then one batch norm (arXiv 2204.00826)."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repq_cli.precision import full_precision
from repq_cli.reparam.algebra import Geometry, Kernel, compose_kernels, convolve
from repq_cli.reparam.block import Block, Identity, splitting
from repq_cli.reparam.branch import Branch, ConvBranch, IdentityBranch, ScaledBranch, SumBranch, fold, without_bias
from repq_cli.reparam.sequential import AverageBranch, PointConvBranch, PointFirst, SeparableBranch, identity_point
from repq_cli.reparam.statistics import RunningStatistics, Statistics

EXPANSION = 8  # outputs per input of the depthwise-separable branch


def orepa_block(
    geometry: Geometry,
    activation: nn.Module | None = None,
    batch_norm: Literal[True] = True,
    vgg: bool = False,
    identity: Identity = True,
) -> Block:
    """``activation(BN(x * W))`` with ``W = sum_r v_r * B_r``, six scaled linear branches for kernels 3 and 5.

    A kernel of 7 and more becomes the deep linear stem: 3x3 kernels in sequence, each of six branches. A 1x1 kernel
    becomes a scaled kernel plus a product of two.
    vgg: the paper's block for RepVGG instead: an OREPA kernel without its 1x1 branch, and RepVGG's 1x1 and identity
        branches beside it, each with a batch norm; a deep network without shortcuts needs the identities.
    identity: (vgg) ``split`` quantizes it apart from the rest of the merged kernel, see ``quant/split.py``.
    """
    if geometry.kernel_size == 1:
        return Block(geometry, {"sum": SumBranch(geometry, _factored(geometry))}, activation, "orepa 1x1")
    if geometry.kernel_size >= 7:
        return Block(geometry, {"deep": DeepLinearBranch(geometry)}, activation, "orepa deep")
    if not vgg:
        return Block(geometry, {"sum": SumBranch(geometry, _linear_branches(geometry))}, activation, "orepa")
    branches = _linear_branches(geometry, gain=1.0)
    del branches["point"]
    beside: dict[str, Branch] = {"dense": SumBranch(geometry, branches), "point": ConvBranch(geometry, (1, 1))}
    if geometry.keeps_shape:
        beside["identity"] = IdentityBranch(geometry)
    return splitting(Block(geometry, beside, activation, "orepa vgg"), identity)


def frequency_prior(channels: int, size: int) -> Tensor:
    """Fixed filters ``[O, k, k]``: ``cos(pi (a + 1/2) f / k)`` down the rows, along the columns for the second half.

    ``f = o + 1`` counts from 1 in each half. The published code is written for 3x3 only; this is its plain extension.
    """
    half, device = channels / 2, torch.get_default_device()
    with torch.device("cpu"):  # on meta the first arange takes torch more than a second
        channel = torch.arange(channels, dtype=torch.float64)
        first = channel < half
        frequency = torch.where(first, channel + 1, channel + 1 - half)
        position = torch.arange(size, dtype=torch.float64) + 0.5
        wave = torch.cos(math.pi * frequency.view(-1, 1) * position / size)
        down, along = wave.unsqueeze(2).expand(-1, -1, size), wave.unsqueeze(1).expand(-1, size, -1)
        prior = torch.where(first.view(-1, 1, 1), down, along).float()
    return prior.to(device)


class FrequencyBranch(PointFirst):
    """1x1 convolution, then each output's own fixed filter: ``W[o,i,a,b] = point[o,i] P[o,a,b]``."""

    prior: Tensor

    def __init__(self, geometry: Geometry, point: nn.Conv2d) -> None:
        super().__init__(geometry, point, batch_norm=False)
        self.register_buffer("prior", frequency_prior(geometry.out_channels, geometry.kernel_size), persistent=False)

    def spatial(self, z: Tensor) -> Tensor:
        filters = self.prior.unsqueeze(1)
        return F.conv2d(z, filters, None, self.geometry.stride, 0, 1, self.geometry.out_channels)

    def merge_spatial(self, first: Kernel) -> Kernel:
        return without_bias(first.weight * self.prior.unsqueeze(1))


def _linear_branches(geometry: Geometry, gain: float = math.sqrt(2)) -> dict[str, Branch]:
    """The six branches with their scales, in the paper's order and with the initial values of its code."""
    inputs, groups = geometry.in_channels, geometry.groups
    width = inputs if groups <= 4 else 2 * inputs
    branches: dict[str, tuple[Branch, float]] = {
        "dense": (ConvBranch(geometry, batch_norm=False), 0.25),
        "average": (AverageBranch(geometry, _point(geometry), batch_norm=False), 0.25),
        "frequency": (FrequencyBranch(geometry, _point(geometry)), 0.0),
        "point_dense": (PointConvBranch(geometry, identity_point(geometry, width), batch_norm=False), 0.5),
        "point": (ConvBranch(geometry, (1, 1), batch_norm=False), 1.0),
        "separable": (SeparableBranch(geometry, EXPANSION), 0.5),
    }
    return _scaled(geometry, branches, gain)


def _factored(geometry: Geometry) -> dict[str, Branch]:
    """A 1x1 kernel, and a product of two whose inner width is the smaller side; one factor starts as the identity."""
    inputs, outputs = geometry.in_channels, geometry.out_channels
    if geometry.groups > 1:
        raise ValueError(f"rep=orepa factors 1x1 convolutions without groups only, not {geometry}: see rep.kernels.")
    width = min(inputs, outputs)
    product = PointConvBranch(geometry, nn.Conv2d(inputs, width, 1, bias=False), batch_norm=False)
    branches = _scaled(
        geometry,
        {"point": (ConvBranch(geometry, batch_norm=False), 1.0), "product": (product, 0.5)},
        gain=1.0,
    )
    assert product.point is not None
    nn.init.dirac_((product.point if outputs > inputs else product.conv).weight)
    return branches


def _point(geometry: Geometry) -> nn.Conv2d:
    return nn.Conv2d(geometry.in_channels, geometry.out_channels, 1, groups=geometry.groups, bias=False)


def _scaled(geometry: Geometry, branches: dict[str, tuple[Branch, float]], gain: float) -> dict[str, Branch]:
    """Kernels uniform within ``gain * sqrt(3 / fan_in)`` (Kaiming), each branch behind its scale."""
    for branch, _ in branches.values():
        for module in branch.modules():
            if isinstance(module, nn.Conv2d) and not hasattr(module, "parametrizations"):
                bound = gain * math.sqrt(3 / module.weight[0].numel())
                nn.init.uniform_(module.weight, -bound, bound)
    return {name: ScaledBranch(branch, geometry.out_channels, scale) for name, (branch, scale) in branches.items()}


class DeepLinearBranch(Branch):
    """``(k - 1) / 2`` OREPA 3x3 kernels in sequence with nothing between them, then a batch norm: one kxk kernel."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        if geometry.groups > 1:
            raise ValueError(f"The deep linear stem of rep=orepa has no groups, but {geometry} has.")
        self.geometry = geometry
        outputs = geometry.out_channels
        inputs = [geometry.in_channels] + [outputs] * ((geometry.kernel_size - 1) // 2 - 1)
        links = [Geometry(channels, outputs, 3, 1, 0) for channels in inputs]
        self.kernels = nn.ModuleList(SumBranch(link, _linear_branches(link), batch_norm=False) for link in links)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(convolve(x, self._weight(RunningStatistics()), self.geometry))

    def _weight(self, statistics: Statistics) -> Tensor:
        kernels = cast("Iterable[Branch]", self.kernels)
        with full_precision():
            return functools.reduce(compose_kernels, (kernel.merged(statistics).weight for kernel in kernels))

    def merged(self, statistics: Statistics) -> Kernel:
        return fold(self.norm, without_bias(self._weight(statistics)), statistics, self.geometry)
