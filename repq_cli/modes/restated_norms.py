"""Statistics of batch norms taken anew: before QAT, so that the function that was trained stays, and after it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from repq_cli.batch_norm import norm_multiplier
from repq_cli.quant.quantizer import quantizers
from repq_cli.reparam.algebra import Kernel, convolve
from repq_cli.reparam.block import Block
from repq_cli.reparam.branch import ConvBranch, kept_sums
from repq_cli.reparam.layout import Layout
from repq_cli.reparam.moments import Moments
from repq_cli.reparam.statistics import BatchStatistics, EstimatedStatistics, Estimator, RunningStatistics

UNLIKE = 10.0  # times the variance by which a running one is taken for that of other images


class _Average:
    """The mean over batches of the moments of each module's outputs."""

    def __init__(self) -> None:
        self.sums: dict[Any, list[Moments]] = {}

    def add(self, seen: Iterable[tuple[nn.Module, Moments]]) -> None:
        for module, moments in seen:
            self.sums.setdefault(module, []).append(moments)

    def __iter__(self) -> Iterator[tuple[Any, Moments]]:
        for module, seen in self.sums.items():
            means, variances = zip(*seen, strict=True)
            yield module, Moments(torch.stack(means).mean(0), torch.stack(variances).mean(0))


@contextmanager
def _watching(net: nn.Module, watch: object, by_batch: bool) -> Iterator[None]:
    """Call ``watch(block, inputs)`` before each block runs, by running statistics or by those of the batch alone.

    The running averages of FP training lag behind weights that move, and each layer magnifies what the ones before it
    left: a deep net that trained for some steps only, with a loss that falls, overflows by them. What was trained is
    the function of the batch, and it is the one that is kept.
    """
    was_training = net.training
    net.eval()
    blocks = [block for block in net.modules() if isinstance(block, Block)]
    norms = [part for block in blocks for part in block.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.training, norm.track_running_stats = by_batch, not by_batch
    hooks = [block.register_forward_pre_hook(watch) for block in blocks]  # type: ignore[arg-type]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for norm in norms:
            norm.track_running_stats = True
        net.train(was_training)


class _Both(BatchStatistics):
    """Answers with a batch's own moments, those that batch norm divides by, and sees what RepQ-BNEst estimates.

    So an outer batch norm is estimated behind the kernel that its inner ones really give, now and after the switch.
    """

    def __init__(self, x: Tensor, estimator: Estimator) -> None:
        super().__init__(x)
        self.estimated = EstimatedStatistics(x, estimator)

    def __call__(self, norm: nn.BatchNorm2d, kernel: Kernel | None, geometry: Layout) -> Moments:
        self.estimated(norm, kernel, geometry)
        return super().__call__(norm, kernel, geometry)


@torch.no_grad()
def with_fitting_statistics(net: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    """``net``; or a copy with the statistics of ``batches``, if those that it has are none of these images'.

    A network that never trained, or that saw other images, gives tensors of another size by its running statistics than
    by those of the batch. Steps that were set by the former clip all of the latter to one code, behind which there is
    no variance left, and folding by ``sqrt(eps)`` multiplies some hundred times, layer by layer, until it overflows.
    The rule: in front of some batch norm of the network in eval mode, where what one layer leaves multiplies with what
    the next one does, the middle channel of the first batch has ``(var + (mean - running mean)^2) / running var`` above
    ``UNLIKE`` or below its inverse.
    """
    listed = iter(batches)
    first = next(listed)

    def compare(block: Block, inputs: tuple[Tensor, ...]) -> None:
        statistics = BatchStatistics(inputs[0])
        block.merged(statistics)
        if not all(_fits(norm, moments) for norm, moments in statistics.seen):
            raise _OtherImagesError

    try:
        with _watching(net, compare, by_batch=False):
            net(first)
    except _OtherImagesError:
        return _with_statistics(copy.deepcopy(net), (first, *listed))
    return net


class _OtherImagesError(Exception):
    """Running statistics are none of these images'."""


def _with_statistics(net: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    """``net`` with the statistics of ``batches``."""
    seen = _Average()

    def watch(block: Block, inputs: tuple[Tensor, ...]) -> None:
        statistics = BatchStatistics(inputs[0])
        block.merged(statistics)
        seen.add(statistics.seen)

    with kept_sums(net), _watching(net, watch, by_batch=True):
        for batch in batches:
            net(batch)
    for norm, (mean, var) in seen:
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(var)
    return net


def _fits(norm: nn.BatchNorm2d, moments: Moments) -> bool:
    assert norm.running_mean is not None and norm.running_var is not None
    if norm.running_var.is_meta:  # no values to look at
        return True
    square = moments.var + (moments.mean - norm.running_mean).square()
    ratio = ((square + norm.eps) / (norm.running_var + norm.eps)).median().item()
    return 1 / UNLIKE <= ratio <= UNLIKE


@torch.no_grad()
def to_estimated_statistics(net: nn.Module, batches: Iterable[Tensor], estimator: Estimator) -> nn.Module:
    """A copy of ``net`` whose running statistics are those that RepQ-BNEst estimates, with the function that it trains.

    With the moments ``mean, var`` and the estimates ``mean', var'`` of the same batches scale and shift follow:
    ``gamma' = gamma sqrt((var' + eps) / (var + eps))``, ``beta' = beta + (mean' - mean) gamma / sqrt(var + eps)``.
    No estimate divides by the true deviation later, so that it is this ratio that has to be right.
    """
    net = copy.deepcopy(net)
    true, estimated = _Average(), _Average()

    def watch(block: Block, inputs: tuple[Tensor, ...]) -> None:
        both = _Both(inputs[0], estimator)
        block.merged(both)
        true.add(both.seen)
        estimated.add(both.estimated.seen)

    with kept_sums(net), _watching(net, watch, by_batch=True):
        for batch in batches:
            net(batch)
    for (norm, (mean, var)), (_, (estimated_mean, estimated_var)) in zip(true, estimated, strict=True):
        norm.bias.add_(norm_multiplier((estimated_mean - mean) * norm.weight, var, norm.eps))
        norm.weight.mul_(norm_multiplier(torch.sqrt(estimated_var + norm.eps), var, norm.eps))
        norm.running_mean.copy_(estimated_mean)
        norm.running_var.copy_(estimated_var)
    return net


@torch.no_grad()
def with_reinserted_norms(net: nn.Module, batches: Iterable[Tensor], by_batch: bool = False) -> nn.Module:
    """A copy of ``net`` with each block merged into one convolution and a batch norm that keeps its function.

    by_batch: the function that is trained, rather than that of inference by running statistics.
    With mean and variance of the block's outputs before activation, and the bias that merging gives: ``beta = mean``,
    ``gamma = sqrt(var + eps)``, running mean ``mean - bias`` and variance ``var``, those of the convolution without it.
    """
    net = copy.deepcopy(net)
    blocks = {name: block for name, block in net.named_modules() if isinstance(block, Block)}
    of_branches, of_outputs = _Average(), _Average()

    def watch(block: Block, inputs: tuple[Tensor, ...]) -> None:
        statistics = BatchStatistics(inputs[0]) if by_batch else RunningStatistics()
        weight, bias = block.merged(statistics)
        var, mean = torch.var_mean(convolve(inputs[0], weight, block.geometry, bias), (0, 2, 3), correction=0)
        if isinstance(statistics, BatchStatistics):
            of_branches.add(statistics.seen)
        of_outputs.add([(block, Moments(mean, var))])

    with kept_sums(net), _watching(net, watch, by_batch):
        for batch in batches:
            net(batch)
    for norm, (mean, var) in of_branches:
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(var)
    outputs = dict(of_outputs)
    for name, block in blocks.items():
        mean, var = outputs[block]
        net.set_submodule(name, _conv_and_norm(block, mean, var))
    return net


def _conv_and_norm(block: Block, mean: Tensor, var: Tensor) -> Block:
    """``block`` as one convolution and a batch norm, which gives outputs of this mean and variance."""
    conv, branch = block.to_conv(), ConvBranch(block.geometry)
    branch.to(conv.weight)
    norm = branch.norm
    assert conv.bias is not None and norm is not None
    assert norm.running_mean is not None and norm.running_var is not None
    branch.conv.weight.copy_(conv.weight)
    norm.running_mean.copy_(mean - conv.bias)
    norm.running_var.copy_(var)
    norm.weight.copy_(torch.sqrt(var + norm.eps))
    norm.bias.copy_(mean)
    return Block(block.geometry, {"conv": branch}, block.activation)


@torch.no_grad()
def reestimate_statistics(net: nn.Module, batches: Iterable[Tensor]) -> int:
    """Take the running statistics of a quantization-aware net anew, its weights and steps fixed; of how many norms.

    Statistics that follow batches in training become their plain averages over ``batches``, ``m <- m + (m_k - m) / k``
    with the moments ``m_k`` of batch k (from 1), the variance unbiased as in training; those that are frozen stay. The
    averages of training lag behind weights that move, and codes of few bits jump with them. Quantizers work as in eval
    mode: no range follows and no sign is drawn.
    """
    norms = [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    before = [(norm.momentum, _batches_seen(norm)) for norm in norms]
    was_training = net.training
    net.train()
    for quantizer in quantizers(net).values():
        quantizer.eval()
    for number, batch in enumerate(batches, start=1):
        for norm in norms:
            norm.momentum = 1 / number
        net(batch)
    net.train(was_training)
    for norm, (momentum, _) in zip(norms, before, strict=True):
        norm.momentum = momentum
    return sum(_batches_seen(norm) > seen for norm, (_, seen) in zip(norms, before, strict=True))


def _batches_seen(norm: nn.modules.batchnorm._BatchNorm) -> int:
    return 0 if norm.num_batches_tracked is None else int(norm.num_batches_tracked)
