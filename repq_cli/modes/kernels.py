"""Sources of the kernel that a quantized convolution uses."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from repq_cli import collective
from repq_cli.modes.options import ModeOptions
from repq_cli.quant.kernel_source import KernelSource
from repq_cli.reparam.algebra import Kernel
from repq_cli.reparam.block import Block
from repq_cli.reparam.branch import ConvBranch
from repq_cli.reparam.moments import first_images
from repq_cli.reparam.statistics import BatchStatistics, EstimatedStatistics, RunningStatistics

Source = Literal["running", "batch", "estimated"]


class FixedKernel(KernelSource):
    """The kernel is a parameter itself: Plain and Merged."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.weight, self.bias

    def inference(self) -> tuple[Tensor, Tensor | None]:
        """The same kernel."""
        return self.weight, self.bias


def unfolded_kernel(block: Block) -> tuple[FixedKernel, nn.BatchNorm2d | None]:
    """The convolution of a block without branches, and the batch norm behind it, whose ``gamma`` are not negative."""
    (branch,) = block.branches.values()
    assert isinstance(branch, ConvBranch), "a plain block has one convolution"
    conv = branch.conv if isinstance(branch.conv.weight, nn.Parameter) else with_own_weight(branch.conv)
    if branch.norm is not None:
        turn_round(conv, branch.norm)
    return FixedKernel(conv), branch.norm


def with_own_weight(conv: nn.Conv2d) -> nn.Conv2d:
    """A convolution that computes its weight, as by weight norm, as one that has it: what is trained from now on."""
    rows, columns = conv.weight.shape[2:]
    made = nn.Conv2d(conv.in_channels, conv.out_channels, (rows, columns), groups=conv.groups, device="meta")
    made.weight, made.bias = nn.Parameter(conv.weight.detach().clone()), conv.bias
    return made.train(conv.training)


@torch.no_grad()
def turn_round(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Give the sign of a negative ``gamma`` to its channel's weights and mean, which leaves the function as it is.

    QAT then quantizes the weights as they ship: signed codes have a lowest one without an opposite.
    """
    conv.weight.mul_(signs_taken(norm, conv.bias))


@torch.no_grad()
def signs_taken(norm: nn.BatchNorm2d, bias: Tensor | None) -> Tensor:
    """Take the signs of ``gamma`` out of it, the mean and the bias in front: by ``[O, 1, 1, 1]``, for the weights."""
    assert norm.running_mean is not None
    sign = torch.where(norm.weight < 0, -1.0, 1.0).to(norm.weight)
    for tensor in (bias, norm.running_mean, norm.weight):
        if tensor is not None:
            tensor.mul_(sign)
    return sign.view(-1, 1, 1, 1)


class BranchKernel(KernelSource):
    """The kernel is a function of a block's branches, rebuilt at every training step: RepQ and its variants.

    ``statistics``: where batch norms get theirs in training; in eval mode and after ``freeze_statistics`` always from
    the running averages. Source: arXiv 2311.05317, eq. for R_q and Algorithm 1.
    """

    def __init__(self, block: Block, statistics: Source, options: ModeOptions, post_bn: bool = False) -> None:
        """``post_bn``: whether a batch norm of its own follows the quantized convolution."""
        super().__init__()
        self.block, self.statistics, self.options = block, statistics, options
        self.detach = options.detaches(post_bn)

    def forward(self, x: Tensor, raw: Tensor) -> Kernel:
        if self.statistics == "running":
            return self.inference()
        observed = self._observe(raw if self.options.stats_input == "fp" else x)
        kernel = self.block.merged(observed)
        observed.update_running()
        return kernel

    def _observe(self, x: Tensor) -> BatchStatistics | EstimatedStatistics:
        images = None
        if self.options.stats_fraction < 1:
            images = self.options.statistics_images(collective.images_of_all(x.shape[0]))
            x = first_images(x, collective.own_of_first(images))
        if self.statistics == "batch":
            return BatchStatistics(x, self.detach, images)
        return EstimatedStatistics(x, self.options.estimator, self.detach, images)

    def inference(self) -> Kernel:
        """The kernel by running statistics."""
        return self.block.merged(RunningStatistics())

    @property
    def follows_batches(self) -> bool:
        """Unless statistics are frozen."""
        return self.statistics != "running"

    def freeze_statistics(self) -> None:
        """From now on train with the running statistics as they are."""
        self.statistics = "running"
