"""Function-preserving changes of a trained network's batch norms, made between FP training and QAT."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from repq_cli.reparam.algebra import Geometry, Kernel
from repq_cli.reparam.block import Block
from repq_cli.reparam.branch import ConvBranch
from repq_cli.reparam.statistics import BatchStatistics, EstimatedStatistics, Estimator, Moments, RunningStatistics


class _Average:
    """The mean of each batch norm's moments over batches."""

    def __init__(self) -> None:
        self.sums: dict[nn.BatchNorm2d, list[Moments]] = {}

    def add(self, seen: Iterable[tuple[nn.BatchNorm2d, Moments]]) -> None:
        for norm, moments in seen:
            self.sums.setdefault(norm, []).append(moments)

    def __iter__(self) -> Iterator[tuple[nn.BatchNorm2d, Moments]]:
        for norm, seen in self.sums.items():
            means, variances = zip(*seen, strict=True)
            yield norm, Moments(torch.stack(means).mean(0), torch.stack(variances).mean(0))


@contextmanager
def _watching(net: nn.Module, watch: object) -> Iterator[None]:
    """Call ``watch(block, inputs)`` before each block runs, with the net in eval mode."""
    was_training = net.training
    net.eval()
    hooks = [block.register_forward_pre_hook(watch) for block in net.modules() if isinstance(block, Block)]  # type: ignore[arg-type]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        net.train(was_training)


class _Beside:
    """Records what the estimates would be, and answers with the running statistics that the function rests on.

    So an outer batch norm is estimated behind the kernel that its inner ones really give, now and after the switch.
    """

    def __init__(self, estimated: EstimatedStatistics) -> None:
        self.estimated, self.running = estimated, RunningStatistics()

    def __call__(self, norm: nn.BatchNorm2d, kernel: Kernel | None, geometry: Geometry) -> Moments:
        self.estimated(norm, kernel, geometry)
        return self.running(norm, kernel, geometry)


@torch.no_grad()
def to_estimated_statistics(net: nn.Module, batches: Iterable[Tensor], estimator: Estimator) -> nn.Module:
    """A copy of ``net`` whose running statistics are those that RepQ-BNEst estimates, with the same function.

    The estimates differ from what the batch norms learned, so scale and shift follow:
    ``gamma' = gamma sqrt((var' + eps) / (var + eps))``, ``beta' = beta + (mean' - mean) gamma / sqrt(var + eps)``.
    """
    net = copy.deepcopy(net)
    average = _Average()

    def watch(block: Block, inputs: tuple[Tensor, ...]) -> None:
        estimated = EstimatedStatistics(inputs[0], estimator)
        block.merged(_Beside(estimated))
        average.add(estimated.seen)

    with _watching(net, watch):
        for batch in batches:
            net(batch)
    for norm, (mean, var) in average:
        assert norm.running_mean is not None and norm.running_var is not None
        old_deviation = torch.sqrt(norm.running_var + norm.eps)
        norm.bias.add_((mean - norm.running_mean) * norm.weight / old_deviation)
        norm.weight.mul_(torch.sqrt(var + norm.eps) / old_deviation)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(var)
    return net


@torch.no_grad()
def with_reinserted_norms(net: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    """A copy of ``net`` with each block merged into one convolution and a fresh batch norm that keeps its function.

    With the mean and variance of the bias-free convolution: ``gamma = sqrt(var + eps)``, ``beta = bias + mean``.
    """
    merged = copy.deepcopy(net)
    names = {name: block for name, block in merged.named_modules() if isinstance(block, Block)}
    biases: dict[nn.BatchNorm2d, Tensor] = {}
    for name, block in names.items():
        conv = block.to_conv()
        branch = _conv_norm(block.geometry, conv)
        assert conv.bias is not None and branch.norm is not None
        # Until its statistics are known, the batch norm passes the convolution on and adds the bias.
        branch.norm.running_var.fill_(1 - branch.norm.eps)  # type: ignore[union-attr]
        branch.norm.bias.copy_(conv.bias)
        biases[branch.norm] = conv.bias
        merged.set_submodule(name, Block(block.geometry, {"conv": branch}, block.activation))
    average = _Average()

    def watch(block: Block, inputs: tuple[Tensor, ...]) -> None:
        statistics = BatchStatistics(inputs[0])
        block.merged(statistics)
        average.add(statistics.seen)

    with _watching(merged, watch):
        for batch in batches:
            merged(batch)
    for norm, (mean, var) in average:
        norm.running_mean.copy_(mean)  # type: ignore[union-attr]
        norm.running_var.copy_(var)  # type: ignore[union-attr]
        norm.weight.copy_(torch.sqrt(var + norm.eps))
        norm.bias.copy_(biases[norm] + mean)
    return merged


def _conv_norm(geometry: Geometry, conv: nn.Conv2d) -> ConvBranch:
    branch = ConvBranch(geometry).to(conv.weight)
    branch.conv.weight.copy_(conv.weight)
    return branch
