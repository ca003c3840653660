"""Moments of activations and convolutions: lean backwards, the compiler's form and half precision agree."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from conftest import randomise
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from repq_cli.modes.kernels import BranchKernel
from repq_cli.modes.options import ModeOptions
from repq_cli.reparam.acnet import acnet_block
from repq_cli.reparam.algebra import Geometry, Window
from repq_cli.reparam.moments import Moments, conv_moments, covariance, first_images, map_moments, power_sums
from repq_cli.reparam.repvgg import repvgg_block

LAYOUTS = (torch.contiguous_format, torch.channels_last)
by_position = pytest.mark.parametrize("by_position", [True, False])


def activation(layout: torch.memory_format, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(5, 3, 4, 6).to(dtype).contiguous(memory_format=layout).requires_grad_()


@by_position
def test_power_sums_and_gradients_are_those_of_plain_sums(by_position: bool, subtests: pytest.Subtests) -> None:
    dims = (0,) if by_position else (0, 2, 3)
    for layout in LAYOUTS:
        with subtests.test(layout=layout):
            x = activation(layout)
            assert torch.autograd.gradcheck(lambda x: power_sums(x, by_position), x)
            assert torch.autograd.gradgradcheck(lambda x: power_sums(x, by_position), x)
            sums = power_sums(x, by_position)
            torch.testing.assert_close(sums.first, x.sum(dims, keepdim=True), atol=1e-12, rtol=0)
            torch.testing.assert_close(sums.second, x.square().sum(dims, keepdim=True), atol=1e-12, rtol=0)
            (grad,) = torch.autograd.grad(sums.first.sum() + sums.second.sum(), x)
            torch.testing.assert_close(grad, 1 + 2 * x.detach(), atol=0, rtol=1e-15)
            assert grad.stride() == x.stride(), "another order of memory is several times slower"


def test_moments_of_convolutions_and_gradients_are_those_of_their_outputs(subtests: pytest.Subtests) -> None:
    """By running them, and by the covariance of channels; of the map itself with no kernel at all."""
    for layout in LAYOUTS:
        for shape, window in (
            ((4, 3, 3, 3), Window((2, 2), (1, 1), (1, 1), 1)),
            ((6, 1, 1, 3), Window((1, 1), (0, 1), (1, 1), 3)),
        ):
            with subtests.test(layout=layout, shape=shape):
                weight = torch.randn(shape, dtype=torch.float64, requires_grad=True)
                check(lambda x, w, at=window: conv_moments(x, w, at), lambda x, w, at=window: F.conv2d(x, w, None, *at),
                      activation(layout), weight)  # fmt: skip
        with subtests.test(layout=layout, shape="1x1"):
            weight = torch.randn(2, 3, 1, 1, dtype=torch.float64, requires_grad=True)
            check(lambda x, w: covariance(x).moments(w), F.conv2d, activation(layout), weight)
            check(lambda x: covariance(x).moments(None), lambda x: x, activation(layout))
            check(map_moments, lambda x: x, activation(layout))
            check(lambda x: map_moments(first_images(x, 2)), lambda x: x[:2], activation(layout))


def check(moments: Callable[..., Moments], output: Callable[..., Tensor], *inputs: Tensor) -> None:
    """``moments`` and their gradients are those of what ``output`` gives."""
    assert torch.autograd.gradcheck(moments, inputs)
    found, wanted = moments(*inputs), torch.var_mean(output(*inputs), (0, 2, 3), correction=0)
    torch.testing.assert_close((found.var, found.mean), wanted, atol=1e-12, rtol=1e-12)
    direction = [torch.randn_like(value) for value in found]
    grads = torch.autograd.grad(found, inputs, direction)
    torch.testing.assert_close(grads, torch.autograd.grad(wanted[::-1], inputs, direction), atol=1e-12, rtol=1e-12)
    x, *weights = (value.detach().float().requires_grad_() for value in inputs)
    assert torch.autograd.grad(moments(x, *weights)[1].sum(), x)[0].stride() == x.stride() == inputs[0].stride()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_moments_of_half_precision_are_computed_in_float32(dtype: torch.dtype, subtests: pytest.Subtests) -> None:
    weight = torch.randn(4, 3, 3, 3)
    functions: dict[str, Callable[[Tensor], tuple[Tensor, ...]]] = {
        "by position": power_sums,
        "by channel": lambda x: power_sums(x, by_position=False),
        "covariance": covariance,
        "convolution": lambda x: conv_moments(x, weight, Window((1, 1), (1, 1), (1, 1), 1)),
        "map": map_moments,
    }
    for layout in LAYOUTS:
        for name, function in functions.items():
            with subtests.test(layout=layout, function=name):
                x = activation(layout, dtype)
                exact = x.detach().float().requires_grad_()
                found, wanted = function(x), function(exact)
                torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)
                direction = [torch.randn_like(value) for value in wanted]
                (grad,) = torch.autograd.grad(found, x, direction)
                (wanted_grad,) = torch.autograd.grad(wanted, exact, direction)
                torch.testing.assert_close(grad, wanted_grad.to(dtype), atol=0, rtol=0.01)


BLOCKS = {"repvgg": lambda: repvgg_block(Geometry(4, 4)), "acnet": lambda: acnet_block(Geometry(4, 6, stride=2))}


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("repq_bnest", "acnet"),
        ("repq_bn", "repvgg"),
        pytest.param("repq_bnest", "repvgg", marks=pytest.mark.slow),
        pytest.param("repq_bn", "acnet", marks=pytest.mark.slow),
    ],
)
def test_a_branch_kernel_is_one_graph_for_the_compiler(mode: str, name: str) -> None:
    """Traced without a break, once for every batch size but the first: kernel, gradients and running averages."""
    options = ModeOptions(name=mode, stats_fraction=0.7)
    eager = BranchKernel(randomise(BLOCKS[name]()).double(), "estimated" if mode == "repq_bnest" else "batch", options)
    traced = copy.deepcopy(eager)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(traced, fullgraph=True, backend=counter)
    for batch in (5, 5, 3, 2):
        x = torch.randn(batch, 4, 6, 7, dtype=torch.float64, requires_grad=True)
        found = []
        for source in (eager, compiled):
            weight, bias = source(x, x)
            loss = weight.pow(3).sum() + bias.square().sum()
            found.append((weight, bias, *torch.autograd.grad(loss, [x, *source.parameters()])))
        torch.testing.assert_close(found[1], found[0], atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(dict(traced.named_buffers()), dict(eager.named_buffers()))
    assert counter.frame_count <= 2, "one graph for the first batch size, one for all others"
