"""Blocks without batch norm, merged in training, and ECBSR, which is made of them."""

from __future__ import annotations

import copy

import pytest
import torch
from blocks import BARE, BARE_CASES
from torch import Tensor, nn

from repq_cli.deploy.check import compare
from repq_cli.deploy.cost import cost, parameter_count
from repq_cli.deploy.freeze import freeze
from repq_cli.deploy.network import DeployedNet
from repq_cli.errors import CheckError
from repq_cli.models.ecbsr import ECBSR, ecbsr
from repq_cli.modes.branchwise import requantize
from repq_cli.modes.calibrate import calibrate
from repq_cli.modes.compose import compose
from repq_cli.modes.options import ModeOptions
from repq_cli.quant.layers import quant_layers
from repq_cli.quant.options import QuantOptions
from repq_cli.quant.quantizer import Quantizer, quantizers
from repq_cli.reparam.acnet import acnet_block
from repq_cli.reparam.algebra import Geometry
from repq_cli.reparam.block import Block, merge_first
from repq_cli.reparam.ecb import ecb_block
from repq_cli.reparam.plain import plain_block
from repq_cli.reparam.repvgg import repvgg_block
from repq_cli.reparam.statistics import RunningStatistics
from repq_cli.tasks.super_resolution import SuperResolution

pytestmark = pytest.mark.no_cover  # many cases of lines that other tests cover as well

FP32 = QuantOptions(weight_bits=32, act_bits=32)


def scrambled(net: nn.Module) -> nn.Module:
    """Parameters far from their initial values: scales that start near zero would hide a wrong edge filter."""
    for parameter in net.parameters():
        nn.init.normal_(parameter, 0.0, 0.3)
    return net


def gradients(net: nn.Module, x: Tensor, direction: Tensor) -> tuple[Tensor, list[Tensor]]:
    y = net(x)
    return y, list(torch.autograd.grad((y * direction).sum(), [x, *net.parameters()], allow_unused=True))


@pytest.mark.parametrize("name", BARE)
def test_merged_training_is_the_branches_with_all_gradients(name: str, subtests: pytest.Subtests) -> None:
    """Borders, odd sizes, a PReLU behind: outputs and every gradient agree in float64."""
    for geometry in BARE_CASES[name]:
        with subtests.test(geometry=str(geometry)):
            block = scrambled(BARE[name](geometry, nn.PReLU(geometry.out_channels))).double().train()
            merged = copy.deepcopy(block)
            merge_first(merged)
            assert isinstance(merged, Block) and merged.merges_first and not block.merges_first
            for size in [(9, 11), (7, 8), (3, 3)]:
                x = torch.randn(2, geometry.in_channels, *size, dtype=torch.float64, requires_grad=True)
                direction = torch.randn_like(block(x))
                (y, wanted), (z, got) = gradients(block, x, direction), gradients(merged, x, direction)
                torch.testing.assert_close(z, y, atol=1e-10, rtol=1e-10)
                torch.testing.assert_close(got, wanted, atol=1e-10, rtol=1e-10)


def test_blocks_with_batch_norm_are_not_merged_first() -> None:
    block = repvgg_block(Geometry(4, 4))
    merge_first(block)
    assert not block.merges_first
    merge_first(bare := repvgg_block(Geometry(4, 4), batch_norm=False))
    assert bare.merges_first
    merge_first(bare, False)
    assert not bare.merges_first


def test_the_bias_in_front_of_an_edge_filter_never_reaches_the_output() -> None:
    """Its filters sum to zero, at the border too, since the input is padded before the 1x1 convolution."""
    block = scrambled(ecb_block(Geometry(3, 5))).double()
    block(torch.randn(2, 3, 6, 7, dtype=torch.float64)).square().sum().backward()
    for name in ("sobel_x", "sobel_y", "laplacian"):
        bias = block.get_submodule(f"branches.{name}.point").bias
        assert isinstance(bias, Tensor) and bias.grad is not None
        torch.testing.assert_close(bias.grad, torch.zeros_like(bias), atol=1e-12, rtol=0)


def test_ecb_merges_to_the_published_kernel() -> None:
    """An independent sum over the table of METHODS: each branch's kernel and bias by its formula."""
    block = scrambled(ecb_block(Geometry(3, 4))).double()
    part = dict(block.named_parameters())
    weight = part["branches.dense.conv.weight"].clone()
    bias = part["branches.dense.conv.bias"].clone()
    k0, b0 = part["branches.point_dense.point.weight"], part["branches.point_dense.point.bias"]
    k1, b1 = part["branches.point_dense.conv.weight"], part["branches.point_dense.conv.bias"]
    assert k0.shape == (8, 3, 1, 1)  # twice the outputs
    weight += torch.einsum("otab,ti->oiab", k1, k0[:, :, 0, 0])
    bias += b1 + torch.einsum("otab,t->o", k1, b0)
    sobel_x = torch.tensor([[1, 0, -1], [2, 0, -2], [1, 0, -1]], dtype=torch.float64)
    laplacian = torch.tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=torch.float64)
    for name, mask in (("sobel_x", sobel_x), ("sobel_y", sobel_x.T), ("laplacian", laplacian)):
        scale, point = part[f"branches.{name}.scale"], part[f"branches.{name}.point.weight"]
        weight += scale.view(-1, 1, 1, 1) * point * mask
        bias += part[f"branches.{name}.bias"]
    merged = block.merged(RunningStatistics())
    torch.testing.assert_close(merged.weight, weight, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(merged.bias, bias, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("size", [1, 5])
def test_edge_filters_are_3x3(size: int) -> None:
    with pytest.raises(ValueError, match=f"this kernel is {size}x{size}: use rep.kernels="):
        ecb_block(Geometry(4, 4, size, padding=size // 2))


def test_acnet_without_batch_norm_can_start_as_its_square_branch() -> None:
    block = acnet_block(Geometry(3, 3), batch_norm=False, single_init=True)
    weight, _ = block.merged(RunningStatistics())
    assert torch.equal(weight, block.get_submodule("branches.square.conv").weight)


# Blocks, channels, scale: merged parameters and GMACs for an output of 1080x1920, as computed from the paper.
PUBLISHED = {
    (4, 8, 2): (2_748, 1.381),
    (4, 8, 4): (3_624, 0.457),
    (4, 16, 2): (10_100, 5.151),
    (4, 16, 4): (11_840, 1.512),
    (10, 16, 2): (24_116, 12.32),
    (10, 16, 4): (25_856, 3.303),
    (10, 32, 2): (94_308, 48.52),
    (10, 32, 4): (97_776, 12.58),
    (16, 64, 2): (594_884, 307.3),
    (16, 64, 4): (601_808, 77.7),
}


@pytest.mark.parametrize(("size", "published"), PUBLISHED.items(), ids=str)
def test_published_sizes(size: tuple[int, int, int], published: tuple[int, float]) -> None:
    blocks, channels, scale = size
    net = ecbsr(plain_block_bare, 1, blocks, channels, scale)
    shape = [1, 1080 // scale, 1920 // scale]
    deployed = freeze(compose(net, ModeOptions("plain"), FP32), {"input_shape": shape})
    assert parameter_count(deployed) == published[0]
    assert float(f"{cost(deployed).macs / 1e9:.4g}") == pytest.approx(published[1], rel=6e-4)
    assert deployed.halo == net.halo == blocks + 2


def plain_block_bare(geometry: Geometry, activation: nn.Module | None) -> Block:
    return plain_block(geometry, activation, batch_norm=False)


@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_input_is_added_as_the_published_network_adds_it(colours: int, scale: int) -> None:
    """There, every pixel is repeated over the channels of its patch before the shuffle."""
    net = ecbsr(ecb_block, colours, 1, 4, scale).double()
    x = torch.rand(2, colours, 5, 7, dtype=torch.float64)
    y = x
    for block in net.blocks:
        y = block(y)
    expected = nn.functional.pixel_shuffle(y + x.repeat_interleave(scale**2, 1), scale)
    torch.testing.assert_close(net(x), expected, atol=1e-12, rtol=1e-12)


def tiny(rep: str = "ecb", activation: str = "prelu", scale: int = 2) -> ECBSR:
    net = ecbsr(BARE[rep], 1, 1, 4, scale, activation=activation)  # type: ignore[arg-type]
    for parameter in net.parameters():
        parameter.data += 0.03 * torch.randn_like(parameter)
    return net


@pytest.mark.parametrize("mode", ["plain", "merged", "repq", "ptq", "branchwise"])
def test_without_quantization_every_mode_is_the_fp_network(mode: str, subtests: pytest.Subtests) -> None:
    for rep in BARE:
        with subtests.test(rep=str(rep)):
            if mode == "plain":
                rep = "plain"
            net = tiny(rep).double().eval()
            x = torch.rand(2, 1, 9, 11, dtype=torch.float64) * 255
            composed = compose(net, ModeOptions(mode), FP32)  # type: ignore[arg-type]
            torch.testing.assert_close(composed.eval()(x), net(x), atol=1e-10, rtol=1e-10)
            torch.testing.assert_close(composed.train()(x), net(x), atol=1e-10, rtol=1e-10)


QUANTS = {
    "w8a8": QuantOptions(),
    "w2a2": QuantOptions(weight_bits=2, act_bits=2),
    "lsqplus": QuantOptions(act_method="lsqplus", weight_bits=4, act_bits=4),
    "affine": QuantOptions("affine", "affine", granularity="tensor", int32_bias=True),
    "integers to the end": QuantOptions(output="int8"),
    "affine to the end": QuantOptions("affine", "affine", granularity="tensor", int32_bias=True, output="int8"),
}


@pytest.mark.parametrize("mode", ["plain", "merged", "repq", "ptq", "branchwise"])
def test_the_deployed_network_is_the_trained_one(mode: str, tmp_path: object, subtests: pytest.Subtests) -> None:
    for quant in QUANTS:
        with subtests.test(quant=str(quant)):
            options = QUANTS[quant]
            fp = tiny("plain" if mode == "plain" else "ecb")
            x = (torch.rand(4, 1, 13, 15) * 219 + 16).round()
            net = compose(fp, ModeOptions(mode, post_bn=False), options)  # type: ignore[arg-type]
            calibrate(net, x, "min_error", fp)
            net = requantize(net, "min_error") if mode == "branchwise" else net
            folder = tmp_path / "deploy"  # type: ignore[operator]
            freeze(net, {"input_shape": [1, 9, 9]}).save(folder)
            agreement = compare(net, DeployedNet.load(folder), [x], SuperResolution(2, "luma").agreement)
            assert agreement.max_abs == 0 and agreement.answers == 100 and agreement.max_lsb == 0


def test_prelu_outputs_are_signed_and_pixels_are_not() -> None:
    """The first tensor is pixels, the last too; between them a PReLU gives both signs, a ReLU does not."""
    for activation, signed in (("prelu", True), ("relu", False)):
        net = compose(tiny(activation=activation), ModeOptions("repq"), QuantOptions(output="int8"))
        found = {name: part.signed for name, part in quantizers(net).items() if "tap" in name}
        assert found == {"taps.0": False, "taps.1": signed, "taps.2": signed, "sum_tap": True, "output_tap": False}
    net = compose(tiny(), ModeOptions("repq"), QuantOptions(weight_bits=4, act_bits=4))
    bits = [layer.quantizer.bits for layer in quant_layers(net).values()]
    assert bits == [8, 4, 8]  # first and last at 8 bit
    assert isinstance(net.output_tap, Quantizer) and net.output_tap.bits == 32


@pytest.mark.parametrize("quant", [QuantOptions(output="int8"), QuantOptions("affine", "affine", output="int8")])
def test_pixels_are_their_own_codes_whatever_the_first_batch_lacks(quant: QuantOptions) -> None:
    """Dark crops to calibrate on must not clip the white of others."""
    fp = tiny()
    net = compose(fp, ModeOptions("repq"), quant)
    calibrate(net, torch.rand(2, 1, 9, 9) * 60, "min_error", fp)
    pixels = torch.arange(256.0).view(1, 1, 16, 16)
    for name in ("taps.0", "output_tap"):
        quantizer = net.get_submodule(name)
        assert isinstance(quantizer, Quantizer)
        assert torch.equal(quantizer(pixels), pixels) and torch.equal(quantizer.integers(pixels), pixels)
        assert not any(parameter.requires_grad for parameter in quantizer.parameters())


def test_pixels_out_of_range_are_clipped_and_other_negative_values_refused() -> None:
    fp = tiny(activation="relu")
    x = torch.rand(2, 1, 9, 9) * 40 - 20
    net = compose(fp, ModeOptions("repq"), QuantOptions(weight_bits=4, act_bits=4, first_last="same"))
    with pytest.raises(CheckError, match=r"taps\.0 goes down to"):
        calibrate(net, x, "min_error", fp)
    with torch.no_grad():
        last = fp.blocks[-1]
        last.get_submodule("branches.dense.conv").bias.fill_(-30.0)  # type: ignore[union-attr, operator]
    net = compose(fp, ModeOptions("repq"), QuantOptions(output="int8"))
    calibrate(net, x.abs(), "min_error", fp)
    assert net.eval()(x.abs()).min() == 0


def test_the_added_input_is_itself_or_its_codes() -> None:
    x = torch.rand(2, 1, 9, 9) * 255
    for residual, exact in (("fp", True), ("int", False)):
        fp = tiny()
        options = QuantOptions(residual=residual)  # type: ignore[arg-type]
        net = compose(fp, ModeOptions("repq"), options)
        calibrate(net, x, "min_error", fp)
        with torch.no_grad():
            for parameter in quant_layers(net)["blocks.2"].kernel.parameters():  # type: ignore[operator, union-attr]
                parameter.zero_()
        y = net.eval()(x)
        assert torch.equal(y, x.repeat_interleave(2, 2).repeat_interleave(2, 3)) == exact
