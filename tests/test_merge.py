"""Merging is proven for every branch: outputs and gradients of every parameter, borders and odd maps included."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from blocks import BARE, BARE_CASES, BLOCKS, CASES, GEOMETRIES, branches, legal
from conftest import randomise
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import repq_cli as repq
from repq_cli.deploy.freeze import freeze
from repq_cli.modes.unchanging import unchanging
from repq_cli.quant.sums import sums_in_training
from repq_cli.quant.windows import Window
from repq_cli.reparam.acnet import acnet_block
from repq_cli.reparam.algebra import (
    Geometry,
    Kernel,
    compose_kernels,
    convolve,
    depthwise_then_point,
    fold_batch_norm,
    identity_kernel,
    pad_kernel,
    point_then_average,
    point_then_conv,
)
from repq_cli.reparam.block import Block
from repq_cli.reparam.branch import IdentityBranch, ScaledBranch, SumBranch
from repq_cli.reparam.dbb import dbb_block
from repq_cli.reparam.orepa import DeepLinearBranch, frequency_prior, orepa_block
from repq_cli.reparam.plain import only_kernels, plain_block
from repq_cli.reparam.repvgg import RepVGGBlock, repvgg_blocks
from repq_cli.reparam.statistics import RunningStatistics

pytestmark = pytest.mark.no_cover  # many cases of lines that other tests cover as well

every_block = pytest.mark.parametrize("name", BLOCKS)


def run_merged(block: Block, x: Tensor) -> Tensor:
    weight, bias = block.merged(RunningStatistics())
    geometry = block.geometry
    return F.conv2d(x, weight, bias, geometry.stride, geometry.padding, 1, geometry.groups)


def check_merge(block: Block) -> None:
    """Outputs, border included, and the gradients of the input and of every parameter, in float64.

    Of maps with an odd number of rows and an even one of columns: both ends of each are borders.
    """
    x = torch.randn(3, block.geometry.in_channels, 9, 8, dtype=torch.float64, requires_grad=True)
    inputs = [x, *block.parameters()]
    expected = block(x)
    direction = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * direction).sum(), inputs)
    merged = run_merged(block, x)
    got = torch.autograd.grad((merged * direction).sum(), inputs)
    torch.testing.assert_close(merged, expected, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(got, wanted, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("kind", sorted({kind for geometry in GEOMETRIES for kind in branches(geometry)}))
def test_every_branch_merges_with_all_gradients(kind: str, subtests: pytest.Subtests) -> None:
    for geometry in GEOMETRIES:
        if kind in (legal := branches(geometry)):
            with subtests.test(geometry=str(geometry)):
                block = randomise(Block(geometry, {kind: legal[kind]()})).double().eval()
                check_merge(block)


@every_block
def test_every_block_merges_with_all_gradients(name: str, subtests: pytest.Subtests) -> None:
    for geometry in CASES[name]:
        with subtests.test(geometry=str(geometry)):
            block = randomise(BLOCKS[name](geometry)).double().eval()
            check_merge(block)


@pytest.mark.parametrize("name", BARE)
def test_every_block_without_batch_norm_merges_with_all_gradients(name: str, subtests: pytest.Subtests) -> None:
    for geometry in BARE_CASES[name]:
        with subtests.test(geometry=str(geometry)):
            block = BARE[name](geometry).double()
            for parameter in block.parameters():
                nn.init.normal_(parameter, 0.0, 0.3)
            check_merge(block)


@every_block
def test_to_conv_is_a_new_module_equal_in_float32(name: str, subtests: pytest.Subtests) -> None:
    for geometry in CASES[name]:
        with subtests.test(geometry=str(geometry)):
            block = randomise(BLOCKS[name](geometry, nn.ReLU())).eval()
            before = {key: value.clone() for key, value in block.state_dict().items()}
            conv = block.to_conv()
            x = torch.randn(2, geometry.in_channels, 7, 9)
            torch.testing.assert_close(F.relu(conv(x)), block(x), atol=2e-5, rtol=2e-5)
            assert all(torch.equal(before[key], value) for key, value in block.state_dict().items())


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    """Any layout of a convolution that blocks may have."""
    groups, size = draw(st.integers(1, 4)), draw(st.sampled_from([1, 3, 5, 7]))
    inputs, outputs = (groups * draw(st.integers(1, 4)) for _ in range(2))
    return Geometry(inputs, outputs, size, draw(st.integers(1, 3)), draw(st.integers(0, size // 2 + 1)), groups)


@settings(max_examples=10, deadline=None)
@given(
    geometry=geometries(),
    name=st.sampled_from(sorted(BLOCKS)),
    size=st.tuples(st.integers(7, 12), st.integers(7, 12)),
    bits=st.tuples(st.integers(1, 8), st.integers(2, 8)),
    granularity=st.sampled_from(["channel", "tensor"]),
)
def test_any_geometry_merges_and_ships(
    geometry: Geometry, name: str, size: tuple[int, int], bits: tuple[int, int], granularity: str
) -> None:
    """With all gradients; and as a network of quantized convolutions to the last bit."""
    if not legal(BLOCKS[name], geometry):
        return
    block = randomise(BLOCKS[name](geometry)).eval()
    check_merge(copy.deepcopy(block).double())
    net = nn.Sequential(
        block.to_conv(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(geometry.out_channels, 3)
    )
    x = torch.randn(2, geometry.in_channels, *size)
    quant = repq.QuantOptions(weight_bits=bits[0], act_bits=bits[1], granularity=granularity, first_last="same")
    qat = repq.prepare(net, x, weight_bits=bits[0], act_bits=bits[1], quant=quant, batches=[x]).eval()
    deployed = freeze(qat, {"task": "classification", "input_shape": list(x.shape[1:])})
    with torch.no_grad():
        assert torch.equal(deployed(x), qat(x))


def run_every_branch(module: nn.Module, x: Tensor) -> Tensor:
    """A linear sum without its short cut: each branch as a convolution of its own."""
    if isinstance(module, SumBranch):
        y = sum(run_every_branch(branch, x) for branch in module.branches.values())
        return y if module.norm is None else module.norm(y)
    if isinstance(module, DeepLinearBranch):
        y = F.pad(x, (module.geometry.padding,) * 4)
        for kernel in module.kernels:
            y = run_every_branch(kernel, y)
        stride = module.geometry.stride
        return module.norm(y[:, :, ::stride, ::stride])
    if isinstance(module, ScaledBranch):
        return run_every_branch(module.branch, x) * module.scale.view(-1, 1, 1)
    return module(x)


def test_a_network_that_does_not_change_merges_its_sums_once() -> None:
    """Where its branches' weights change, gradients are asked for, or it has left, they are merged anew."""
    block = randomise(orepa_block(Geometry(4, 4))).eval()
    (branch,), x = block.branches.values(), torch.randn(2, 4, 6, 5)
    first = block(x)
    with unchanging(block), unchanging(block):
        with torch.no_grad(), mock.patch.object(ScaledBranch, "merged", side_effect=AssertionError("merged again")):
            assert torch.equal(block(x), first)
            assert torch.equal(block.to_conv().weight, block.to_conv().weight)
        block(x).sum().backward()
        assert all(parameter.grad is not None for parameter in branch.branches.parameters())
    with torch.no_grad():
        next(branch.branches.parameters()).mul_(3)
        assert not torch.equal(block(x), first)


def test_merging_before_the_convolution_is_running_every_branch(subtests: pytest.Subtests) -> None:
    """OREPA trains as one convolution; its branches run one by one give the same outputs and gradients."""
    for geometry in CASES["orepa"]:
        with subtests.test(geometry=str(geometry)):
            block = randomise(orepa_block(geometry)).double().train()
            (branch,) = block.branches.values()
            x = torch.randn(3, geometry.in_channels, 9, 11, dtype=torch.float64, requires_grad=True)
            inputs = [x, *block.parameters()]
            expected, got = run_every_branch(branch, x), block(x)
            direction = torch.randn_like(expected)
            torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-10)
            wanted = torch.autograd.grad((expected * direction).sum(), inputs)
            given = torch.autograd.grad((got * direction).sum(), inputs)
            torch.testing.assert_close(given, wanted, atol=1e-9, rtol=1e-9)


def test_identity_branches_say_why_they_cannot_be() -> None:
    for geometry in (Geometry(4, 4, stride=2), Geometry(4, 6), Geometry(4, 4, padding=0)):
        with pytest.raises(ValueError, match="identity branch needs output and input of one shape"):
            IdentityBranch(geometry)


@pytest.mark.parametrize(
    ("make", "geometry", "reason"),
    [
        (acnet_block, Geometry(4, 4, kernel_size=1, padding=0), "which a 1x1 kernel does not have"),
        (dbb_block, Geometry(12, 6, groups=6), "as many inputs as outputs"),
        (orepa_block, Geometry(4, 4, kernel_size=1, padding=0, groups=2), "1x1 convolutions without groups"),
        (orepa_block, Geometry(4, 4, kernel_size=7, padding=3, groups=2), "deep linear stem .* has no groups"),
    ],
)
def test_geometries_that_a_block_cannot_have(make: Callable[..., Block], geometry: Geometry, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make(geometry)


# The primitives, against sequences of torch's own layers.


@pytest.mark.parametrize("groups", [1, 2])
def test_point_then_conv_equals_the_sequence_padded_with_the_bias(groups: int) -> None:
    first = Kernel(torch.randn(6, 4 // groups, 1, 1), torch.randn(6))
    second = torch.randn(8, 6 // groups, 3, 3)
    x = torch.randn(2, 4, 7, 5)
    z = F.conv2d(F.pad(x, (1, 1, 1, 1)), first.weight, first.bias, groups=groups)
    weight, bias = point_then_conv(first, second, groups)
    torch.testing.assert_close(
        F.conv2d(x, weight, bias, padding=1, groups=groups), F.conv2d(z, second, groups=groups), atol=1e-4, rtol=1e-4
    )


def test_point_then_average_equals_the_sequence() -> None:
    first = Kernel(torch.randn(6, 4, 1, 1), torch.randn(6))
    x = torch.randn(2, 4, 7, 5)
    weight, bias = point_then_average(first, 3)
    expected = F.avg_pool2d(F.conv2d(x, first.weight, first.bias), 3, 1)
    torch.testing.assert_close(F.conv2d(x, weight, bias), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("groups", [1, 2])
def test_depthwise_then_point_equals_the_sequence(groups: int) -> None:
    depthwise, point = torch.randn(12, 1, 3, 3), torch.randn(6, 12 // groups, 1, 1)
    x = torch.randn(2, 4, 7, 5)
    weight = depthwise_then_point(depthwise, point, 4, groups)
    expected = F.conv2d(F.conv2d(x, depthwise, groups=4), point, groups=groups)
    torch.testing.assert_close(F.conv2d(x, weight, groups=groups), expected, atol=1e-4, rtol=1e-4)


def test_compose_kernels_equals_the_sequence() -> None:
    first, second = torch.randn(5, 3, 3, 3).double(), torch.randn(4, 5, 3, 3).double()
    x = torch.randn(2, 3, 9, 8).double()
    composed = compose_kernels(first, second)
    assert composed.shape == (4, 3, 5, 5)
    torch.testing.assert_close(F.conv2d(x, composed), F.conv2d(F.conv2d(x, first), second), atol=1e-12, rtol=1e-12)


def test_convolve_crops_where_a_small_kernel_sits_in_a_large_unpadded_one() -> None:
    x, weight = torch.randn(2, 4, 9, 8), torch.randn(4, 4, 1, 3)
    geometry = Geometry(4, 4, kernel_size=3, padding=0)
    expected = F.conv2d(x, pad_kernel(weight, (3, 3)))
    torch.testing.assert_close(convolve(x, weight, geometry), expected, atol=1e-5, rtol=1e-5)


def test_fold_batch_norm_by_hand() -> None:
    kernel = Kernel(torch.full((1, 1, 1, 1), 2.0), torch.tensor([1.0]))
    gamma, beta, mean, var = (torch.tensor([value]) for value in (3.0, 0.5, 4.0, 8.0))
    weight, bias = fold_batch_norm(kernel, gamma, beta, mean, var, eps=1.0)
    assert weight.item() == 2.0  # 2 * 3 / sqrt(8 + 1)
    assert bias.item() == 0.5 + (1.0 - 4.0) * 1.0


def test_identity_kernel_copies_its_input_in_groups() -> None:
    x = torch.randn(2, 6, 5, 5)
    kernel = identity_kernel(6, 2, like=x)
    assert torch.equal(F.conv2d(x, kernel, groups=2), x)


def test_pad_kernel_keeps_the_centre() -> None:
    padded = pad_kernel(torch.ones(1, 1, 1, 3), (5, 5))
    assert padded.shape == (1, 1, 5, 5)
    assert torch.equal(padded[0, 0, 2], torch.tensor([0.0, 1, 1, 1, 0]))
    assert padded.sum() == 3


def test_repvgg_has_an_identity_exactly_where_shapes_agree() -> None:
    assert list(RepVGGBlock(Geometry(4, 4)).branches) == ["dense", "point", "identity"]
    assert list(RepVGGBlock(Geometry(4, 4, stride=2)).branches) == ["dense", "point"]
    assert list(RepVGGBlock(Geometry(4, 6)).branches) == ["dense", "point"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"kernel_size": 2}, "kernel_size=2 is even: use 3"),
        ({"groups": 3}, "groups=3 must divide in_channels=4"),
    ],
)
def test_impossible_geometry_says_why(arguments: dict[str, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Geometry(4, 4, **arguments)


def test_frequency_prior_is_the_formula() -> None:
    """An independent loop (arXiv 2204.00826's code), and what is known of it: 11 distinct filters, every sixth zero."""
    prior = frequency_prior(64, 3).numpy()
    for o in range(64):
        frequency = o + 1 if o < 32 else o + 1 - 32
        for a in range(3):
            for b in range(3):
                position = a if o < 32 else b
                assert abs(prior[o, a, b] - math.cos(math.pi * (position + 0.5) * frequency / 3)) < 1e-5
    assert len(np.unique(prior.round(5) + 0.0, axis=0)) == 11
    assert sum(abs(filters).max() < 1e-5 for filters in prior) == 10


def test_orepa_starts_as_the_paper_says() -> None:
    (branch,) = orepa_block(Geometry(16, 16)).branches.values()
    scales = {name: scaled.scale.unique().tolist() for name, scaled in branch.branches.items()}
    assert scales == {
        "dense": [0.25], "average": [0.25], "frequency": [0.0], "point_dense": [0.5], "point": [1.0], "separable": [0.5]
    }  # fmt: skip
    inner = branch.branches["point_dense"].branch
    assert torch.equal(inner.point.weight, identity_kernel(16, 1, inner.point.weight))


@pytest.mark.parametrize(("vgg", "gain"), [(False, math.sqrt(2)), (True, 1.0)])
def test_orepas_kernels_start_uniform_within_kaimings_bound(vgg: bool, gain: float) -> None:
    block = orepa_block(Geometry(64, 64), vgg=vgg)
    branch = block.branches["dense" if vgg else "sum"]
    for scaled in branch.branches.values():
        for conv in (module for module in scaled.modules() if isinstance(module, nn.Conv2d)):
            if not hasattr(conv, "parametrizations"):
                bound = gain * math.sqrt(3 / conv.weight[0].numel())
                assert 0.98 * bound < conv.weight.abs().max() <= bound
    scales = [scaled.scale[0].item() for scaled in branch.branches.values()]
    assert scales == [0.25, 0.25, 0.0, 0.5, *([] if vgg else [1.0]), 0.5]


@pytest.mark.parametrize(("inputs", "outputs"), [(4, 6), (6, 4), (5, 5)])
def test_orepas_1x1_starts_with_one_factor_the_identity(inputs: int, outputs: int) -> None:
    (branch,) = orepa_block(Geometry(inputs, outputs, 1, 1, 0)).branches.values()
    product = branch.branches["product"].branch
    wide, other = (product.point, product.conv) if outputs > inputs else (product.conv, product.point)
    assert torch.equal(wide.weight.flatten(1), torch.eye(min(inputs, outputs)))
    assert not torch.equal(other.weight.flatten(1), torch.eye(outputs, inputs))
    assert [branch.branches[name].scale[0].item() for name in ("point", "product")] == [1.0, 0.5]


def test_acnet_initial_gamma() -> None:
    def gammas(**options: object) -> list[float]:
        block = acnet_block(Geometry(4, 4), **options)
        return [branch.norm.weight.mean().item() for branch in block.branches.values()]

    assert gammas() == [1, 1, 1]
    assert gammas(gamma_init=0.25) == [0.25] * 3
    assert gammas(single_init=True) == [1, 0, 0]


def test_only_the_named_kernels_are_reparameterised() -> None:
    make = only_kernels([3, 5], acnet_block)
    for size, kind in ((1, "conv"), (3, "acnet"), (5, "acnet"), (7, "conv")):
        assert make(Geometry(4, 4, kernel_size=size, padding=size // 2), None).kind == kind


def test_custom_l2_against_numpy() -> None:
    block = randomise(RepVGGBlock(Geometry(4, 6, stride=2))).double()
    dense, point = block.branches["dense"], block.branches["point"]
    w3, w1 = (branch.conv.weight.detach().numpy() for branch in (dense, point))
    t3, t1 = (
        branch.norm.weight.detach().numpy() / np.sqrt(branch.norm.running_var.numpy() + 1e-5)
        for branch in (dense, point)
    )
    expected = 0.0
    for o in range(6):
        for i in range(4):
            for a in range(3):
                for b in range(3):
                    if (a, b) != (1, 1):
                        expected += w3[o, i, a, b] ** 2
            expected += (w3[o, i, 1, 1] * t3[o] + w1[o, i, 0, 0] * t1[o]) ** 2 / (t3[o] ** 2 + t1[o] ** 2)
    assert repvgg_blocks(nn.Sequential(block, plain_block(Geometry(6, 6)))) == [block]
    assert block.custom_l2().item() == pytest.approx(expected, rel=1e-12)
    block.custom_l2().backward()
    assert dense.norm.weight.grad is None, "t is not differentiated"
    assert all(parameter.grad is not None for parameter in block.penalised())


def test_custom_l2_of_dead_channels_is_finite() -> None:
    block = RepVGGBlock(Geometry(4, 6, stride=2))
    for branch in block.branches.values():
        nn.init.zeros_(branch.norm.weight)
    penalty = block.custom_l2()
    penalty.backward()
    assert torch.isfinite(penalty)
    assert all(torch.isfinite(parameter.grad).all() for parameter in block.penalised())


def test_gradients_of_strided_points_of_few_channels(subtests: pytest.Subtests) -> None:
    """In oneDNN they would end the process, channels last, or write into what others hold."""
    for inputs, size in itertools.product((3, 5, 6), (8, 131)):
        for padding, groups in ((1, 1), (0, 1), *([(1, 3)] if inputs % 3 == 0 else [])):
            with subtests.test(inputs=inputs, size=size, padding=padding, groups=groups):
                geometry = Geometry(inputs, 6, stride=2, padding=padding, groups=groups)
                x = torch.randn(2, inputs, size, size - 3)
                first = torch.randn(6, inputs // groups, 1, 1, requires_grad=True)
                second = first.detach().clone().requires_grad_()
                last = x.contiguous(memory_format=torch.channels_last)
                seen = x if padding else x[:, :, 1:-1, 1:-1]
                expected = F.conv2d(seen, second, stride=2, groups=groups)
                window = Window(2, 0, groups)
                within = last if padding else last[:, :, 1:-1, 1:-1]
                for y in (convolve(last, first, geometry), sums_in_training(within, first, None, window)):
                    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
                    wanted = torch.autograd.grad(expected.square().sum(), second, retain_graph=True)
                    found = torch.autograd.grad(y.square().sum(), first)
                    torch.testing.assert_close(found, wanted, atol=1e-2, rtol=1e-4)
