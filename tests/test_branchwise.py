"""Quantizing branch by branch: what it needs to be merged, and what is lost when it is quantized again."""

from __future__ import annotations

import pytest
import torch
from blocks import BLOCKS
from conftest import randomise, tiny_net
from torch import nn

from repq_cli.modes.branchwise import BranchwiseKernel, merged_bits, requantize
from repq_cli.modes.calibrate import calibrate
from repq_cli.modes.compose import compose, compose_block
from repq_cli.modes.options import ModeOptions
from repq_cli.quant.bits import levels, table_bits, uniform_bits
from repq_cli.quant.options import QuantOptions
from repq_cli.quant.quantizer import quantizers
from repq_cli.reparam.algebra import Geometry, Kernel, point_then_conv
from repq_cli.reparam.block import Block
from repq_cli.reparam.repvgg import repvgg_block
from repq_cli.reparam.sequential import PointConvBranch

pytestmark = pytest.mark.no_cover  # many cases of lines that other tests cover as well

W4A4 = QuantOptions(weight_bits=4, act_bits=4)
BRANCHWISE = ModeOptions("branchwise")


def test_two_factors_of_two_bits_need_four() -> None:
    """The paper's own example (arXiv 2311.05317, section 3.1): numbers in [0, 3] multiply to seven values up to 9."""
    factor = torch.arange(4.0, dtype=torch.float64)
    assert uniform_bits(factor.view(1, -1)) == 2
    # Every product of two factors, as the kernel of a 1x1 convolution before a 1x1 convolution.
    first, second = (factor.view(4, 1).expand(4, 4).flatten(), factor.expand(4, 4).flatten())
    products = [point_then_conv(Kernel(a.view(1, 1, 1, 1), a.new_zeros(1)), b.view(1, 1, 1, 1), 1).weight
                for a, b in zip(first, second, strict=True)]  # fmt: skip
    merged = torch.cat(products).view(1, 16)
    assert set(merged.flatten().tolist()) == {0, 1, 2, 3, 4, 6, 9}
    assert levels(merged) == 7
    assert uniform_bits(merged) == 4
    assert uniform_bits(merged * 0.37) == 4, "whatever the steps are"


def test_an_integer_grid_needs_its_own_bits(subtests: pytest.Subtests) -> None:
    for bits in range(1, 9):
        for signed in [True, False]:
            with subtests.test(bits=str(bits), signed=str(signed)):
                low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
                grid = torch.arange(low, high + 1, dtype=torch.float64)
                rows = grid[torch.randperm(len(grid))] * torch.rand(3, 1).double().add(0.1)
                assert uniform_bits(rows) == bits
                assert table_bits(rows) == bits
                assert levels(rows) == 2**bits


def test_sums_of_many_products_need_many_bits() -> None:
    """METHODS: 32 products of 8-bit factors need about 20 bits."""
    codes = torch.randint(-127, 128, (2, 4, 500, 32), generator=torch.Generator().manual_seed(0)).double()
    merged = (codes[0] * codes[1]).sum(2) * 0.013
    assert 17 <= uniform_bits(merged) <= 20


@pytest.mark.parametrize("count", range(2, 12))
def test_values_by_chance_have_no_grid(count: int) -> None:
    rows = torch.randn(200, count, dtype=torch.float64, generator=torch.Generator().manual_seed(count))
    assert not any(uniform_bits(row.view(1, -1)) for row in rows)


def test_a_grid_of_more_than_24_bits_is_none() -> None:
    for high, bits in ((2**23 - 1, 24), (2**24 - 1, None)):
        assert uniform_bits(torch.tensor([[-1.0, 1.0, high]], dtype=torch.float64)) == bits


def test_steps_without_a_common_multiple_have_no_grid() -> None:
    values = torch.tensor([[1.0, 2.0, 3.0, 2**0.5]], dtype=torch.float64)
    assert uniform_bits(values) is None
    assert table_bits(values) == 2
    assert uniform_bits(torch.zeros(2, 5)) == 1


@pytest.mark.parametrize("name", [name for name in BLOCKS if name != "plain"])
def test_every_inner_kernel_lies_on_its_own_grid(name: str) -> None:
    block = randomise(BLOCKS[name](Geometry(8, 8)))
    layer = compose_block(block, BRANCHWISE, W4A4, edge=False).double()
    layer.calibrate("min_error")
    convs = [module for module in layer.modules() if isinstance(module, nn.Conv2d)]
    assert len(convs) == len(quantizers(layer)) >= 2
    for conv in convs:
        needed = uniform_bits(conv.weight.detach())
        assert needed is not None and needed <= 4


def test_calibration_leaves_no_hooks_and_sees_each_kernel() -> None:
    layer = compose_block(repvgg_block(Geometry(4, 4)), BRANCHWISE, W4A4, edge=False)
    layer.calibrate("min_error")
    assert isinstance(layer.kernel, BranchwiseKernel)
    for conv, quantizer in zip(
        (module for module in layer.modules() if isinstance(module, nn.Conv2d)), layer.kernel.quantizers, strict=True
    ):
        assert not quantizer._forward_pre_hooks
        before = quantizer.step().clone()
        quantizer.calibrate(conv.parametrizations.weight.original.detach(), "min_error")
        assert torch.equal(before, quantizer.step())


def test_without_quantization_branchwise_is_the_fp_network() -> None:
    net = tiny_net().double()
    composed = compose(net, BRANCHWISE, QuantOptions(weight_bits=32, act_bits=32))
    x = torch.randn(4, 3, 12, 11, dtype=torch.float64)
    torch.testing.assert_close(composed.eval()(x), net.eval()(x), atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(composed.train()(x), net.train()(x), atol=1e-10, rtol=1e-10)


def test_a_sequence_of_two_layers_needs_more_bits_than_its_factors() -> None:
    geometry = Geometry(4, 6)
    point = nn.Conv2d(4, 8, 1, bias=False)
    block = Block(geometry, {"both": PointConvBranch(geometry, point, batch_norm=False)})
    options = QuantOptions(weight_bits=2, act_bits=8, granularity="tensor")
    net = nn.Sequential(compose_block(block, BRANCHWISE, options, edge=False))
    net[0].calibrate("min_error")
    (found,) = merged_bits(net).values()
    assert found.uniform_bits is not None and found.uniform_bits > 2
    assert found.levels > 4


def test_requantizing_gives_one_kernel_of_the_bits_that_were_asked_for() -> None:
    net = compose(tiny_net(), BRANCHWISE, W4A4)
    x = torch.randn(8, 3, 12, 11)
    calibrate(net, x, "min_error")
    bits = merged_bits(net)
    assert list(bits) == [f"blocks.{index}" for index in range(6)]
    assert all(found.table_bits > 4 or found.uniform_bits is None for found in bits.values())
    before = {key: value.clone() for key, value in net.state_dict().items()}
    shipped = requantize(net, "min_error")
    assert merged_bits(shipped) == {}
    for name, quantizer in quantizers(shipped).items():
        assert quantizer.bits == (8 if "0" in name or "classifier" in name else 4)
    merged = net.get_submodule("blocks.1").merged_weight()
    layer = shipped.get_submodule("blocks.1")
    torch.testing.assert_close(layer.merged_weight(), merged)
    codes = layer.freeze().weight
    assert (codes.min(), codes.max()) >= (-8, -8) and codes.max() <= 7
    assert not torch.equal(shipped(x), net.eval()(x)), "the demonstration: something is lost"
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in before.items())
