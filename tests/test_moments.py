"""Sums of an activation and of its squares: the lean backward, the compiler's form and half precision agree."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import randomise
from torch._dynamo.testing import CompileCounterWithBackend

from repq_cli.modes.kernels import BranchKernel
from repq_cli.modes.options import ModeOptions
from repq_cli.reparam.acnet import acnet_block
from repq_cli.reparam.algebra import Geometry
from repq_cli.reparam.moments import power_sums
from repq_cli.reparam.repvgg import repvgg_block

LAYOUTS = (torch.contiguous_format, torch.channels_last)
by_position = pytest.mark.parametrize("by_position", [True, False])


def activation(layout: torch.memory_format, dtype: torch.dtype = torch.float64) -> torch.Tensor:
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


@by_position
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_power_sums_of_half_precision_are_computed_in_float32(by_position: bool, dtype: torch.dtype) -> None:
    for layout in LAYOUTS:
        x = activation(layout, dtype)
        exact = x.detach().float().requires_grad_()
        sums, wanted = power_sums(x, by_position), power_sums(exact, by_position)
        torch.testing.assert_close(sums, wanted, atol=0, rtol=0)
        direction = [torch.randn_like(value) for value in wanted]
        (grad,), (wanted_grad,) = (
            torch.autograd.grad(pair, of, direction) for pair, of in ((sums, x), (wanted, exact))
        )
        torch.testing.assert_close(grad, wanted_grad.to(dtype), atol=0, rtol=0)


@pytest.mark.parametrize("mode", ["repq_bnest", "repq_bn"])
def test_a_branch_kernel_is_one_graph_for_the_compiler(mode: str) -> None:
    """Traced without a break, once for every batch size but the first: kernel, gradients and running averages."""
    options = ModeOptions(name=mode)
    for block in (repvgg_block(Geometry(4, 4)), acnet_block(Geometry(4, 6, stride=2))):
        eager = BranchKernel(randomise(block).double(), "estimated" if mode == "repq_bnest" else "batch", options)
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
