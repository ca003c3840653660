"""Batch-norm statistics: RepQ-BN is batch norm, RepQ-BNEst's mean is exact, and what each estimate drops."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from blocks import BLOCKS, CASES
from conftest import randomise

from repq_cli.modes.kernels import BranchKernel, Source
from repq_cli.modes.options import ModeOptions
from repq_cli.reparam.algebra import Geometry, Kernel
from repq_cli.reparam.block import Block
from repq_cli.reparam.branch import ConvBranch, without_bias
from repq_cli.reparam.repvgg import repvgg_block
from repq_cli.reparam.statistics import BatchStatistics, EstimatedStatistics, Moments, RunningStatistics

every_block = pytest.mark.parametrize("name", BLOCKS)
# Every other geometry, by turns: each meets every other block. Merging, in test_merge.py, meets all of them.
HALF = {name: geometries[number % 2 :: 2] for number, (name, geometries) in enumerate(CASES.items())}

pytestmark = pytest.mark.no_cover  # many cases of lines that other tests cover as well


@every_block
def test_repq_bn_without_quantization_is_train_mode_batch_norm(name: str, subtests: pytest.Subtests) -> None:
    """Outputs, gradients of the input and of every parameter, and the running statistics (arXiv 2311.05317, Alg. 1).

    Nested batch norms included: the outer one sees the statistics of what the inner ones make of the batch.
    """
    for geometry in HALF[name]:
        with subtests.test(geometry=str(geometry)):
            block = randomise(BLOCKS[name](geometry)).double().train()
            reference = copy.deepcopy(block)
            x = torch.randn(5, geometry.in_channels, 9, 11, dtype=torch.float64, requires_grad=True)
            expected = reference(x)
            direction = torch.randn_like(expected)
            wanted = torch.autograd.grad((expected * direction).sum(), [x, *reference.parameters()])

            statistics = BatchStatistics(x)
            weight, bias = block.merged(statistics)
            y = F.conv2d(x, weight, bias, geometry.stride, geometry.padding, 1, geometry.groups)
            got = torch.autograd.grad((y * direction).sum(), [x, *block.parameters()])
            statistics.update_running()

            torch.testing.assert_close(y, expected, atol=1e-9, rtol=1e-9)
            torch.testing.assert_close(got, wanted, atol=1e-8, rtol=1e-8)
            torch.testing.assert_close(
                dict(block.named_buffers()), dict(reference.named_buffers()), atol=1e-10, rtol=1e-10
            )


@every_block
def test_estimated_mean_is_exact_in_every_block(name: str, subtests: pytest.Subtests) -> None:
    """Where no estimated variance comes in between: every first batch norm, and all of them for frozen inner ones."""
    for geometry in HALF[name]:
        with subtests.test(geometry=str(geometry)):
            block = randomise(BLOCKS[name](geometry)).double()
            probe = Probe(torch.randn(3, geometry.in_channels, 9, 8, dtype=torch.float64) + 2)
            block.merged(probe)
            assert len(probe.pairs) == len(norms(block))
            for estimated, exact in probe.pairs:
                torch.testing.assert_close(estimated, exact, atol=1e-10, rtol=1e-10)


class Probe:
    """Records exact and estimated means of the running kernels."""

    def __init__(self, x: torch.Tensor) -> None:
        self.pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.sources = BatchStatistics(x), EstimatedStatistics(x)

    def __call__(self, norm: torch.nn.BatchNorm2d, kernel: Kernel | None, of: Geometry) -> Moments:
        exact, estimated = (source(norm, kernel, of) for source in self.sources)
        self.pairs.append((estimated.mean, exact.mean))
        return RunningStatistics()(norm, kernel, of)


def test_estimated_variance_is_exact_for_an_identity_and_for_uncorrelated_inputs() -> None:
    geometry = Geometry(4, 4)
    block = repvgg_block(geometry).double()
    x = torch.randn(4000, 4, 3, 3, dtype=torch.float64)
    exact, estimated = BatchStatistics(x), EstimatedStatistics(x)
    block.merged(exact)
    block.merged(estimated)
    pairs = {id(norm): (true, estimate) for (norm, true), (_, estimate) in zip(exact.seen, estimated.seen, strict=True)}
    true, estimate = pairs[id(block.branches["identity"].norm)]
    torch.testing.assert_close(estimate.var, true.var, atol=1e-12, rtol=1e-12)
    for true, estimate in pairs.values():
        torch.testing.assert_close(estimate.var, true.var, atol=0, rtol=0.1)


def test_estimate_matches_its_formula_in_numpy() -> None:
    """``var = sum W^2 v`` with the moments of what each tap sees, by loops."""
    geometry = Geometry(2, 3, stride=2)
    x = torch.randn(3, 2, 5, 6, dtype=torch.float64)
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64)
    padded = F.pad(x, (1, 1, 1, 1)).numpy()
    out_h, out_w = 3, 3
    expected_var = [0.0] * 3
    for o in range(3):
        for i in range(2):
            for a in range(3):
                for b in range(3):
                    seen = padded[:, i, a : a + 2 * out_h : 2, b : b + 2 * out_w : 2]
                    expected_var[o] += float(weight[o, i, a, b]) ** 2 * seen.var()
    norm = torch.nn.BatchNorm2d(3)
    var = EstimatedStatistics(x)(norm, without_bias(weight), geometry).var
    torch.testing.assert_close(var, torch.tensor(expected_var, dtype=torch.float64), atol=1e-12, rtol=1e-12)


def test_channel_estimator_uses_whole_channel_moments() -> None:
    geometry = Geometry(2, 3)
    x = torch.randn(3, 2, 5, 6, dtype=torch.float64) + 1
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64)
    norm = torch.nn.BatchNorm2d(3)
    mean, var = EstimatedStatistics(x, "channel")(norm, without_bias(weight), geometry)
    torch.testing.assert_close(mean, weight.sum((2, 3)) @ x.mean((0, 2, 3)))
    torch.testing.assert_close(var, weight.square().sum((2, 3)) @ x.var((0, 2, 3), correction=0))


def test_estimated_kernel_is_invariant_to_the_scale_of_its_weights() -> None:
    """With eps 0 the estimate is a quadratic form of W: the gradient has no component along W."""
    geometry = Geometry(3, 4)
    block = Block(geometry, {"dense": repvgg_block(geometry).branches["dense"]}).double()
    norm, weight = block.branches["dense"].norm, block.branches["dense"].conv.weight
    norm.eps = 0.0
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    merged, bias = block.merged(EstimatedStatistics(x))
    loss = F.conv2d(x, merged, bias, padding=1).pow(3).sum()
    (grad,) = torch.autograd.grad(loss, weight)
    along = (grad * weight).sum((1, 2, 3))
    torch.testing.assert_close(along, torch.zeros_like(along), atol=1e-9, rtol=0)


@pytest.mark.parametrize("statistics", [BatchStatistics, EstimatedStatistics])
def test_detached_statistics_are_constants(statistics: type) -> None:
    """No gradient through them, neither to the input nor to the kernel: that of a fold with fixed numbers."""
    block = randomise(repvgg_block(Geometry(3, 4)))
    x = torch.randn(4, 3, 6, 6, requires_grad=True)
    weight, bias = block.merged(statistics(x, detach=True))
    assert torch.autograd.grad(weight.sum() + bias.sum(), x, allow_unused=True, retain_graph=True) == (None,)
    dense = block.branches["dense"]
    got = torch.autograd.grad(weight.square().sum(), dense.conv.weight)

    class Fixed:
        def __call__(self, norm: torch.nn.BatchNorm2d, kernel: Kernel | None, geometry: Geometry) -> Moments:
            moments = statistics(x)(norm, kernel, geometry)
            return Moments(moments.mean.detach(), moments.var.detach())

    wanted = torch.autograd.grad(block.merged(Fixed()).weight.square().sum(), dense.conv.weight)
    torch.testing.assert_close(got, wanted)
    weight, bias = block.merged(statistics(x))
    assert torch.autograd.grad(weight.sum() + bias.sum(), x)[0].abs().sum() > 0


def test_estimated_running_statistics_move_by_momentum_and_are_unbiased() -> None:
    geometry = Geometry(3, 4, stride=2)
    block = randomise(repvgg_block(geometry)).double()
    x = torch.randn(5, 3, 7, 7, dtype=torch.float64)
    count = 5 * 4 * 4
    statistics = EstimatedStatistics(x)
    before = {id(norm): (norm.running_mean.clone(), norm.running_var.clone()) for norm in norms(block)}
    block.merged(statistics)
    statistics.update_running()
    assert len(statistics.seen) == 2
    for norm, (mean, var) in statistics.seen:
        old_mean, old_var = before[id(norm)]
        torch.testing.assert_close(norm.running_mean, 0.9 * old_mean + 0.1 * mean)
        torch.testing.assert_close(norm.running_var, 0.9 * old_var + 0.1 * var * count / (count - 1))
        assert norm.num_batches_tracked == 1


@pytest.mark.parametrize("mode", ["batch", "estimated"])
def test_a_fraction_of_the_batch_gives_its_own_moments(mode: Source) -> None:
    """Those of the first ``ceil(0.3 * 5) = 2`` images, by numpy, with as many values in the running variance."""
    geometry = Geometry(3, 4, stride=2)
    block = randomise(Block(geometry, {"point": ConvBranch(geometry, (1, 1))})).double()
    branch = block.branches["point"]
    x = torch.randn(5, 3, 7, 6, dtype=torch.float64)
    rows = x[:2, :, ::2, ::2].permute(0, 2, 3, 1).reshape(-1, 3).numpy()
    weight = branch.conv.weight.detach().flatten(1).numpy()
    mean, var = (rows @ weight.T).mean(0), (rows @ weight.T).var(0)
    if mode == "estimated":
        var = rows.var(0) @ (weight**2).T
    multiplier = branch.norm.weight.detach().numpy() / (var + branch.norm.eps) ** 0.5
    running = 0.9 * branch.norm.running_var.numpy() + 0.1 * var * len(rows) / (len(rows) - 1)

    merged = BranchKernel(block, mode, ModeOptions("repq_bn", stats_fraction=0.3))(x, x)

    torch.testing.assert_close(merged.weight[:, :, 1, 1].detach().numpy(), weight * multiplier[:, None])
    torch.testing.assert_close(merged.bias.detach().numpy(), branch.norm.bias.detach().numpy() - mean * multiplier)
    torch.testing.assert_close(branch.norm.running_var.numpy(), running)


def norms(block: Block) -> list[torch.nn.BatchNorm2d]:
    return [module for module in block.modules() if isinstance(module, torch.nn.BatchNorm2d)]


def test_merging_alone_changes_no_running_statistics() -> None:
    geometry = Geometry(3, 4)
    block = randomise(repvgg_block(geometry))
    before = copy.deepcopy(block.state_dict())
    block.merged(BatchStatistics(torch.randn(2, 3, 4, 4)))
    block.merged(RunningStatistics())
    assert all(torch.equal(value, block.state_dict()[key]) for key, value in before.items())


def test_one_value_per_channel_is_refused() -> None:
    with pytest.raises(ValueError, match="more than one value per channel"):
        repvgg_block(Geometry(3, 4)).merged(BatchStatistics(torch.randn(1, 3, 1, 1)))


@every_block
@pytest.mark.parametrize("alive", [0.0, 1.0])
def test_behind_a_dead_layer_the_gradients_are_batch_norms(name: str, alive: float) -> None:
    """Where all inputs are zero, or those of every other channel: no variance, and torch's gradients nevertheless.

    The geometries take turns.
    """
    for dtype, tolerance in ((torch.float32, 2e-2), (torch.float64, 1e-9)):
        for geometry in CASES[name][int(alive) : 12 : 2]:
            block = randomise(BLOCKS[name](geometry)).to(dtype).train()
            x = torch.randn(5, geometry.in_channels, 9, 11, dtype=dtype).relu() * alive
            x[:, ::2] = 0
            x.requires_grad_()
            reference = copy.deepcopy(block)
            expected = reference(x)
            direction = torch.randn_like(expected)
            wanted = torch.autograd.grad((expected * direction).sum(), [x, *reference.parameters()])
            for statistics in (BatchStatistics(x), EstimatedStatistics(x)):
                weight, bias = block.merged(statistics)
                y = F.conv2d(x, weight, bias, geometry.stride, geometry.padding, 1, geometry.groups)
                got = torch.autograd.grad((y * direction).sum(), [x, *block.parameters()])
                assert all(torch.isfinite(grad).all() for grad in got)
                if isinstance(statistics, BatchStatistics) or not alive:  # else the estimate is another variance
                    torch.testing.assert_close(got, wanted, atol=tolerance, rtol=tolerance)
