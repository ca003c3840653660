"""Composition rules: without quantization every mode is the FP network, and quantized layers do what they say."""

from __future__ import annotations

import copy
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from blocks import BLOCKS
from conftest import randomise, tiny_net
from torch import Tensor, nn

from repq_cli.models.repvgg import repvgg
from repq_cli.models.tap import Tap
from repq_cli.modes import catalogue
from repq_cli.modes.auto import resolve_mode
from repq_cli.modes.calibrate import calibrate, sees_nothing
from repq_cli.modes.compose import compose, compose_block, freeze_statistics
from repq_cli.modes.kernels import BranchKernel
from repq_cli.modes.options import ModeOptions
from repq_cli.modes.restated_norms import to_estimated_statistics, with_reinserted_norms
from repq_cli.quant.frozen_layers import frozen_layers
from repq_cli.quant.layers import QuantConv, QuantLayer
from repq_cli.quant.lsq import LSQ
from repq_cli.quant.options import QuantOptions
from repq_cli.quant.quantizer import NoQuantizer, quantizers
from repq_cli.reparam.algebra import Geometry
from repq_cli.reparam.block import Block
from repq_cli.reparam.branch import ConvBranch, IdentityBranch
from repq_cli.reparam.plain import plain_block

pytestmark = pytest.mark.no_cover  # many cases of lines that other tests cover as well

FP32 = QuantOptions(weight_bits=32, act_bits=32)
W4A4 = QuantOptions(weight_bits=4, act_bits=4)
MODES = ["merged", "repq", "repq_bn", "repq_bnest"]


def images(count: int = 6, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, 3, 12, 11, dtype=dtype)


def net_for(mode: str, block: str = "repvgg") -> nn.Module:
    return tiny_net(BLOCKS[block] if catalogue.MODES[mode].uses_branches else plain_block)


every_block = pytest.mark.parametrize("block", [name for name in BLOCKS if name != "plain"])


@every_block
def test_without_quantization_eval_mode_is_the_fp_network(block: str, subtests: pytest.Subtests) -> None:
    for mode in catalogue.MODES:
        with subtests.test(mode=str(mode)):
            net = net_for(mode, block).double().eval()
            composed = compose(net, ModeOptions(mode), FP32).eval()
            x = images()
            torch.testing.assert_close(composed(x), net(x), atol=1e-10, rtol=1e-10)


@every_block
def test_repq_bn_without_quantization_trains_as_the_fp_network(block: str, subtests: pytest.Subtests) -> None:
    """A whole network: outputs, gradients and running statistics of a training step."""
    for options in [ModeOptions("repq_bn"), ModeOptions("repq_bn", stats_input="quant")]:
        with subtests.test(options=str(options)):
            net = net_for("repq_bn", block).double().train()
            composed = compose(net, options, FP32).train()
            x = images()
            expected, got = net(x), composed(x)
            torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-10)
            expected.square().sum().backward()
            got.square().sum().backward()
            theirs = [(p.shape, p.grad) for p in composed.parameters()]
            ours = [(p.shape, p.grad) for p in net.parameters()]
            assert len(theirs) == len(ours)
            torch.testing.assert_close([g for _, g in theirs], [g for _, g in ours], atol=1e-9, rtol=1e-9)
            running = [list(part.buffers()) for part in (net, composed)]
            torch.testing.assert_close(running[1], running[0], atol=1e-12, rtol=1e-12)
            running_mean = next(m.running_mean for m in composed.modules() if isinstance(m, nn.BatchNorm2d))
            fresh = next(m.running_mean for m in net_for("repq_bn", block).modules() if isinstance(m, nn.BatchNorm2d))
            assert not torch.equal(running_mean, fresh.double())


def test_plain_with_folded_batch_norm_trains_as_unfolded_without_quantization() -> None:
    net = net_for("plain").double().train()
    folded = compose(net, ModeOptions("plain", plain_bn="folded"), FP32).train()
    unfolded = compose(net, ModeOptions("plain"), FP32).train()
    x = images()
    torch.testing.assert_close(folded(x), unfolded(x), atol=1e-10, rtol=1e-10)


@every_block
@pytest.mark.parametrize("mode", ["repq_bnest", "merged"])
def test_switches_keep_the_function_that_batch_norm_trains(mode: str, block: str) -> None:
    """That of the batch, nested norms included: running averages, here as wrong as can be, only lag behind it."""
    net, x = net_for(mode, block).double(), images()
    by_running = with_reinserted_norms(net, [x]).eval()
    torch.testing.assert_close(by_running(x), net.eval()(x), atol=1e-9, rtol=1e-9)
    expected = copy.deepcopy(net).train()(x)
    for norm in (part for part in net.modules() if isinstance(part, nn.BatchNorm2d)):
        norm.running_mean.add_(100)
        norm.running_var.mul_(100)
    if mode == "merged":
        composed = compose(
            with_reinserted_norms(net, [x], by_batch=True), ModeOptions(mode, merged_bn="reinsert"), FP32
        )
    else:
        composed = compose(to_estimated_statistics(net, [x], "offset"), ModeOptions(mode), FP32)
    torch.testing.assert_close(composed.eval()(x), expected, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(composed.train()(x), expected, atol=1e-9, rtol=1e-9)


def test_reinserted_batch_norm_composes_as_a_plain_convolution() -> None:
    switched = with_reinserted_norms(net_for("merged").double(), [images()])
    composed = compose(switched, ModeOptions("merged", merged_bn="reinsert"), FP32).eval()
    assert all(layer.norm is not None for layer in composed.modules() if isinstance(layer, QuantConv))
    x = images()
    torch.testing.assert_close(composed(x), switched.eval()(x), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("mode", ["repq_bn", "repq_bnest"])
def test_behind_a_dead_layer_quantized_training_stays_finite_as_batch_norm_does(mode: str) -> None:
    """Without variance a folded batch norm multiplies by hundreds, and what quantization changes in the mean with it.

    The layers behind give what batch norm gives, its shift, so that a chain of them does not overflow.
    """
    net = repvgg(BLOCKS["repvgg"], 3, 5, [1, 1, 24, 1], [0.125] * 4, [2, 2, 2, 1, 1])
    x = images(8, torch.float32)
    for norm in (part for part in net.blocks[1].modules() if isinstance(part, nn.BatchNorm2d)):
        nn.init.constant_(norm.bias, -100)  # its ReLU gives zeros
    for norm in (part for block in net.blocks[2:] for part in block.modules() if isinstance(part, nn.BatchNorm2d)):
        nn.init.uniform_(norm.bias, 0.1, 0.5)
    expected = net.train()(x)
    composed = compose(net, ModeOptions(mode), W4A4)
    calibrate(composed, x, "min_error", net)
    assert sees_nothing(composed) == "blocks.2"
    got = composed.train()(x)
    got.logsumexp(1).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in composed.parameters())
    torch.testing.assert_close(
        got, expected, atol=1, rtol=0
    )  # of 4-bit codes and biases, where it is 1e20 and more without


@pytest.mark.parametrize("mode", ["plain", *MODES])
def test_quantized_training_and_inference_agree_where_statistics_do(mode: str) -> None:
    """With frozen statistics, train mode and eval mode are one function, so that training sees what ships."""
    composed = compose(net_for(mode), ModeOptions(mode), W4A4)
    calibrate(composed, images(dtype=torch.float32), "min_error")
    freeze_statistics(composed)
    x = images(dtype=torch.float32)
    before = copy.deepcopy(composed.state_dict())
    trained = composed.train()(x)
    torch.testing.assert_close(trained, composed.eval()(x), atol=1e-4, rtol=1e-4)
    assert all(torch.equal(value, composed.state_dict()[key]) for key, value in before.items())


@pytest.mark.parametrize("mode", ["plain", *MODES])
def test_every_trained_tensor_gets_a_gradient(mode: str) -> None:
    composed = compose(net_for(mode), ModeOptions(mode), W4A4)
    calibrate(composed, images(dtype=torch.float32), "min_error")
    with torch.no_grad():  # means of codes lie on the grid of least error, whose step has no gradient then
        composed.classifier_tap.raw_step.mul_(1.1)
    composed.train()(images(dtype=torch.float32)).square().sum().backward()
    without = [name for name, p in composed.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_a_block_costs_one_convolution_in_eval_and_merges_once() -> None:
    composed = compose(net_for("repq_bn"), ModeOptions("repq_bn"), W4A4).eval()
    blocks = sum(isinstance(module, QuantConv) for module in composed.modules())
    x = images(dtype=torch.float32)
    with torch.no_grad(), frozen_layers(composed), mock.patch.object(F, "conv2d", wraps=F.conv2d) as conv2d:
        composed(x)
        assert conv2d.call_count == blocks
        with mock.patch.object(Block, "merged", side_effect=AssertionError("merged again")):
            composed(x)


@pytest.mark.parametrize("change", ["optimiser", "by hand", "state dict", "statistics", "step"])
def test_the_cached_kernel_follows_every_change(change: str) -> None:
    composed = compose(net_for("repq_bn"), ModeOptions("repq_bn"), W4A4).eval()
    x = images(dtype=torch.float32)
    calibrate(composed, x, "min_error")
    with torch.no_grad():
        first = composed(x)
        assert torch.equal(composed(x), first)
    layer = composed.blocks[1]
    weight = layer.kernel.block.branches["dense"].conv.weight
    if change == "optimiser":
        weight.grad = torch.ones_like(weight)
        torch.optim.SGD([weight], lr=1.0).step()
    elif change == "by hand":
        weight.data[0] += 1
    elif change == "state dict":
        composed.load_state_dict({key: value * 1.5 for key, value in composed.state_dict().items()})
    elif change == "statistics":
        layer.kernel.block.branches["dense"].norm.running_var.mul_(4)
    else:
        layer.quantizer.raw_step.data.mul_(3)
    with torch.no_grad():
        changed = composed(x)
        assert not torch.equal(changed, first)
        fresh = compose_like(composed)
        assert torch.equal(fresh(x), changed)


def compose_like(composed: nn.Module) -> nn.Module:
    """The same network with an empty cache."""
    fresh = compose(net_for("repq_bn"), ModeOptions("repq_bn"), W4A4)
    fresh.load_state_dict(composed.state_dict())
    return fresh.eval()


def test_the_weight_quantizer_sees_the_merged_kernel_and_first_and_last_keep_8_bit() -> None:
    composed = compose(net_for("repq"), ModeOptions("repq"), W4A4)
    bits = {name: quantizer.bits for name, quantizer in quantizers(composed).items()}
    eight = {name for name, width in bits.items() if width == 8}
    assert eight == {"taps.0", "blocks.0.quantizer", "classifier_tap", "classifier.quantizer"}
    assert set(bits.values()) == {4, 8}
    assert composed.taps[0].signed
    assert not composed.taps[1].signed
    calibrate(composed, images(dtype=torch.float32), "min_error")
    layer = composed.blocks[1]
    expected = LSQ(4, True, layer.quantizer.channels)
    expected.calibrate(layer.kernel.block.to_conv().weight)
    torch.testing.assert_close(layer.quantizer.step(), expected.step(), rtol=1e-3, atol=0)


@pytest.mark.parametrize(("first_last", "edge"), [(8, 8), ("same", 2), ("fp", 32)])
def test_first_last_rule(first_last: int | str, edge: int) -> None:
    options = QuantOptions(weight_bits=2, act_bits=2, first_last=first_last)
    composed = compose(net_for("plain"), ModeOptions("plain"), options)
    for quantizer in (composed.taps[0], composed.blocks[0].quantizer, composed.classifier.quantizer):
        assert quantizer.bits == edge
    assert composed.blocks[1].quantizer.bits == 2


def test_granularity_tensor_has_one_step_a_layer() -> None:
    composed = compose(net_for("plain"), ModeOptions("plain"), QuantOptions(granularity="tensor"))
    assert all(quantizer.raw_step.dim() == 0 for quantizer in quantizers(composed).values())


def test_calibration_sees_already_quantized_inputs_layer_by_layer() -> None:
    net = net_for("merged")
    composed = compose(net, ModeOptions("merged"), QuantOptions(weight_bits=2, act_bits=2))
    x = images(dtype=torch.float32)
    calibrate(composed, x, "min_error", net)
    composed.eval()
    seen: dict[str, Tensor] = {}
    tap = composed.taps[3]
    tap.register_forward_pre_hook(lambda module, inputs: seen.update(x=inputs[0]))
    with torch.no_grad():
        composed(x)
    fresh = LSQ(tap.bits, tap.signed, per_sample=True)
    fresh.calibrate(seen["x"])
    torch.testing.assert_close(fresh.step(), tap.step())


def test_statistics_of_codes_or_of_the_tensor_before_its_quantizer() -> None:
    """``stats_input``: RepQ-BN's running mean follows the tensor that the option names."""
    geometry = Geometry(3, 3)
    raw = torch.randn(8, 3, 6, 6)
    codes = raw.round()
    means = {}
    for option, source in (("fp", raw), ("quant", codes)):
        block = Block(geometry, {"identity": IdentityBranch(geometry)})
        block.branches["identity"].norm.momentum = 1.0
        layer = compose_block(block, ModeOptions("repq_bn", stats_input=option), FP32, edge=False).train()
        layer(codes, raw)
        means[option] = layer.kernel.block.branches["identity"].norm.running_mean
        torch.testing.assert_close(means[option], source.mean((0, 2, 3)))
    assert not torch.equal(means["fp"], means["quant"])


def test_freezing_statistics_stops_them_in_every_mode() -> None:
    for mode in ("plain", "repq_bn", "repq_bnest"):
        composed = compose(net_for(mode), ModeOptions(mode), FP32).train()
        start = copy.deepcopy(dict(composed.named_buffers()))
        composed(images(dtype=torch.float32))
        moved = [name for name, value in composed.named_buffers() if not torch.equal(value, start[name])]
        assert len(moved) == len(start)
        freeze_statistics(composed)
        before = copy.deepcopy(dict(composed.named_buffers()))
        composed.train()(images(dtype=torch.float32))
        assert all(torch.equal(value, before[name]) for name, value in composed.named_buffers())


def test_blocks_without_batch_norm_train_by_repq_alone() -> None:
    geometry = Geometry(3, 4)
    block = Block(
        geometry,
        {
            "a": ConvBranch(geometry, batch_norm=False, bias=True),
            "b": ConvBranch(geometry, (1, 1), batch_norm=False, bias=True),
        },
        nn.ReLU(),
    )
    layer = compose_block(block, ModeOptions("repq"), FP32, edge=False).train()
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(layer(x), block(x), atol=1e-5, rtol=1e-5)


def test_composition_leaves_the_fp_network_alone() -> None:
    net = net_for("repq")
    before = copy.deepcopy(net.state_dict())
    composed = compose(net, ModeOptions("repq"), W4A4)
    with torch.no_grad():
        for parameter in composed.parameters():
            parameter.add_(1)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert any(isinstance(module, Tap) for module in net.modules())
    assert not any(isinstance(module, (Tap, Block)) and not _inside(composed, module) for module in composed.modules())


def _inside(composed: nn.Module, module: nn.Module) -> bool:
    """Blocks live on only inside the kernels that they feed."""
    return any(module in kernel.modules() for kernel in composed.modules() if isinstance(kernel, BranchKernel))


def test_float_options_need_no_quantizer() -> None:
    composed = compose(net_for("plain"), ModeOptions("plain"), FP32)
    assert quantizers(composed) == {}
    assert all(isinstance(m.quantizer, NoQuantizer) for m in composed.modules() if isinstance(m, QuantLayer))


@pytest.mark.parametrize(
    ("arguments", "mode"),
    [
        (("auto", "none", True, 4), "plain"),
        (("auto", "repvgg", True, 1), "repq"),
        (("auto", "repvgg", True, 2), "repq"),
        (("auto", "repvgg", True, 3), "repq_bnest"),
        (("auto", "repvgg", True, 8), "repq_bn"),
        (("auto", "ecb", False, 4), "repq"),
        (("merged", "repvgg", True, 4), "merged"),
    ],
)
def test_auto_mode(arguments: tuple[str, str, bool, int], mode: str) -> None:
    assert resolve_mode(*arguments) == mode


def test_randomise_helper_really_randomises() -> None:
    norm = randomise(nn.BatchNorm2d(8))
    assert norm.running_var.std() > 0
    assert norm.weight.std() > 0
