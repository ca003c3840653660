"""What the classic quantizers ask of layers and training: batch norm behind signs, padding, biases, bounds."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import randomise, tiny_net
from torch import nn

from repq_cli.errors import CheckError, ConfigError
from repq_cli.models.repvgg import RepVGG, repvgg
from repq_cli.models.tap import Tap
from repq_cli.modes.calibrate import calibrate
from repq_cli.modes.compose import compose, freeze_statistics
from repq_cli.modes.options import ModeOptions
from repq_cli.quant.affine import AffineActivation
from repq_cli.quant.binary import SignActivation, SignWeight
from repq_cli.quant.build import weight_quantizer
from repq_cli.quant.frozen_layers import frozen_layers
from repq_cli.quant.functional import binarize, input_scale
from repq_cli.quant.latent_weights import clip_latent_weights
from repq_cli.quant.layers import QuantConv, QuantLayer, quant_layers
from repq_cli.quant.lsq import LSQ
from repq_cli.quant.options import QuantOptions
from repq_cli.quant.post_norm import FLOOR, PostNorm2d
from repq_cli.quant.quantizer import NoQuantizer, quantizers
from repq_cli.reparam.block import MakeBlock
from repq_cli.reparam.branch import ConvBranch
from repq_cli.reparam.plain import plain_block
from repq_cli.reparam.repvgg import repvgg_block
from repq_cli.reparam.statistics import RunningStatistics
from repq_cli.tasks.classification import Classification
from repq_cli.train.engine import training_step
from repq_cli.train.optim import parameter_groups
from repq_cli.train.options import OptimOptions

pytestmark = pytest.mark.no_cover  # many cases of lines that other tests cover as well

BNN = QuantOptions("sign", "sign", 1, 1, first_last="inputs8", pad_value=1)
TRAINING_MODES = ["merged", "repq", "repq_bn", "repq_bnest"]


def images(seed: int = 0) -> torch.Tensor:
    return torch.randn(16, 3, 12, 11, generator=torch.Generator().manual_seed(seed))


def hardtanh_net(make_block: MakeBlock = repvgg_block) -> nn.Module:
    widths = [0.125] * 4
    return randomise(repvgg(make_block, 3, 5, [1, 2, 1, 1], widths, [1, 1, 2, 1, 2], activation="hardtanh")).eval()


def composed(mode: str, quant: QuantOptions, net: nn.Module, **options: Any) -> nn.Module:
    found = compose(net, ModeOptions(mode, **options), quant)  # type: ignore[arg-type]
    calibrate(found, images(), quant.init, net)
    return found


@pytest.mark.parametrize("mode", TRAINING_MODES)
def test_a_batch_norm_behind_signs_starts_with_the_moments_of_the_float_net(mode: str) -> None:
    """Behind the first layer, whose input is the same: the FP output's moments, up to the floor under the variance."""
    net = hardtanh_net()
    first = composed(mode, BNN, net).eval().blocks[0]
    assert isinstance(first.norm, PostNorm2d)
    assert first.norm.eps == pytest.approx(FLOOR * first.norm.running_var.mean().item())
    codes = composed(mode, BNN, net).eval().taps[0](images())
    weight, bias = net.blocks[0].merged(RunningStatistics())
    expected = F.conv2d(images(), weight, bias, 1, 1)
    y = first.before_activation(codes, images())
    (var, mean), (wanted_var, wanted_mean) = (
        torch.var_mean(tensor, [0, 2, 3], correction=0) for tensor in (y, expected)
    )
    floored = first.norm.running_var / (first.norm.running_var + first.norm.eps)
    torch.testing.assert_close(var, wanted_var * floored, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(mean, wanted_mean, rtol=1e-3, atol=1e-3)


def test_a_checkpoint_holds_the_floor_of_an_added_batch_norm() -> None:
    net = composed("repq", BNN, hardtanh_net())
    fresh = compose(hardtanh_net(), ModeOptions("repq"), BNN)
    assert fresh.blocks[1].norm.eps != net.blocks[1].norm.eps
    fresh.load_state_dict(net.state_dict())
    assert fresh.blocks[1].norm.eps == net.blocks[1].norm.eps
    assert torch.equal(fresh.eval()(images()), net.eval()(images()))


def test_signs_keep_the_batch_norm_of_a_plain_net_and_renew_its_statistics() -> None:
    net = hardtanh_net(plain_block)
    found = composed("plain", BNN, net).eval()
    first, trained = found.blocks[0], net.blocks[0].branches["conv"].norm
    assert torch.equal(first.norm.weight, trained.weight)
    assert torch.equal(first.norm.bias, trained.bias)
    assert not torch.allclose(first.norm.running_var, trained.running_var)
    y = first.before_activation(found.taps[0](images()), images())
    weight, bias = net.blocks[0].merged(RunningStatistics())
    expected = F.conv2d(images(), weight, bias, 1, 1)
    for got, wanted in zip(torch.var_mean(y, [0, 2, 3]), torch.var_mean(expected, [0, 2, 3]), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)


def test_every_layer_of_a_bnn_is_binary_and_has_its_batch_norm() -> None:
    net = composed("repq_bn", BNN, hardtanh_net())
    assert all(isinstance(layer.quantizer, SignWeight) for layer in quant_layers(net).values())
    assert isinstance(net.classifier.norm, nn.BatchNorm1d)
    bits = {name: quantizer.bits for name, quantizer in quantizers(net).items() if not name.endswith("quantizer")}
    # The image and what the average pooling reads are real; the rest are signs.
    assert {name for name, width in bits.items() if width == 8} == {"taps.0", "pool_tap", "classifier_tap"}
    assert all(isinstance(tap, SignActivation) for tap in net.taps[1:])


def two_blocks() -> nn.Module:
    return randomise(RepVGG(repvgg_block, [3, 4, 4], [2, 1], 5, [1, 1]))


def test_low_bits_get_a_batch_norm_behind_the_convolution(subtests: pytest.Subtests) -> None:
    for mode in TRAINING_MODES:
        for bits, behind in [(1, True), (2, True), (3, False), (8, False)]:
            with subtests.test(mode=str(mode), bits=str(bits), behind=str(behind)):
                quant = QuantOptions(weight_bits=bits, act_bits=8)  # type: ignore[arg-type]
                for option, wanted in (("auto", behind), (True, True), (False, False)):
                    net = composed(mode, quant, two_blocks(), post_bn=option)
                    assert (net.blocks[1].norm is not None) == wanted
                assert composed("ptq", quant, two_blocks()).blocks[1].norm is None


def test_statistics_before_a_batch_norm_are_constants_unless_asked_otherwise() -> None:
    for options, detaches in (({}, True), ({"detach_stats": False}, False), ({"post_bn": False}, False)):
        net = composed("repq_bn", QuantOptions(weight_bits=2, act_bits=2), tiny_net(), **options)
        assert net.blocks[1].kernel.detach == detaches


def test_an_added_batch_norm_goes_on_when_statistics_are_frozen() -> None:
    net = composed("repq_bn", QuantOptions(weight_bits=2, act_bits=2), tiny_net()).train()
    freeze_statistics(net)
    added, inner = net.blocks[1].norm, net.blocks[1].kernel.block.branches["dense"].norm
    before = added.running_mean.clone(), inner.running_mean.clone()
    net(images(1))
    assert not torch.equal(before[0], added.running_mean)
    assert torch.equal(before[1], inner.running_mean)


def conv_of(quantizer: nn.Module, **options: Any) -> QuantConv:
    from repq_cli.modes.kernels import FixedKernel

    conv = nn.Conv2d(4, 6, 3, padding=1)
    return QuantConv(FixedKernel(conv), quantizer, nn.Identity(), stride=2, padding=1, groups=1, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("pad_value", [-1, 0, 1])
def test_signs_are_padded_with_what_is_asked_for(pad_value: int, training: bool) -> None:
    layer = conv_of(SignWeight(), pad_value=pad_value).train(training)
    x = binarize(torch.randn(2, 4, 7, 6))
    padded = F.pad(x, [1] * 4, value=pad_value)
    expected = F.conv2d(padded, binarize(layer.kernel.weight), layer.kernel.bias, 2)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("training", [True, False])
def test_input_scale_multiplies_what_each_position_saw(training: bool) -> None:
    layer = conv_of(SignWeight(), input_scale=True).train(training)
    raw = torch.randn(2, 4, 7, 6)
    y = F.conv2d(binarize(raw), binarize(layer.kernel.weight), None, 2, 1) * input_scale(
        raw, layer.kernel.weight.shape, 2, 1
    )
    torch.testing.assert_close(layer(binarize(raw), raw), y + layer.kernel.bias.view(-1, 1, 1))


@pytest.mark.parametrize("method", ["affine", "lsq"])
def test_int32_biases_are_multiples_of_the_weights_times_the_inputs_step(method: str) -> None:
    quant = QuantOptions(method, method, 8, 8, int32_bias=True)  # type: ignore[arg-type]
    net = composed("repq", quant, tiny_net()).eval()
    layer = net.blocks[2]
    frozen = layer.inference().frozen
    step = layer.quantizer.grid(layer.merged_weight()).step.flatten() * net.taps[2].step()
    torch.testing.assert_close(frozen.bias_step, step)
    assert torch.equal(frozen.bias, frozen.bias.round())
    float_bias = layer.kernel_of_inference()[1]
    assert ((frozen.bias_value() - float_bias).abs() <= step / 2 + 1e-9).all()
    assert not torch.equal(frozen.bias_value(), float_bias)


@pytest.mark.parametrize("weights", ["lsq", "affine", "twn", "bwn"])
def test_a_batch_norm_behind_ships_in_steps_codes_and_an_int32(weights: str) -> None:
    """Multipliers above and below zero, and dead ones; in training by running statistics, the same sums and biases."""
    bits = {"twn": 2, "bwn": 1}.get(weights, 4)
    quant = QuantOptions(weights, "lsq", bits, 8, granularity="tensor")  # type: ignore[arg-type]
    net = randomise(repvgg(plain_block, 3, 5, [1, 2, 1, 1], [0.25] * 4, [1, 1, 2, 1, 2])).eval()
    found = composed("plain", quant, net)
    layer, codes = found.blocks[2], found.taps[2](torch.rand(4, 16, 7, 6) * 3)
    assert (layer.norm.weight >= 0).all()  # the signs that QAT starts with are the weights'
    with torch.no_grad():
        layer.norm.weight[:3] = torch.tensor([0.0, -0.7, 1e-9])
    frozen, (weight, multiplier, bias) = layer.eval().freeze(), layer.inference_weight()
    assert frozen.multiplier is None and torch.equal(frozen.bias, frozen.bias.round())
    assert (frozen.bias.abs() < 2**31).all() and (frozen.bias_step > 0).all()
    live, step = multiplier.abs() > 1e-6, frozen.bias_step
    assert ((frozen.bias_value() - bias).abs() <= step / 2 + 1e-6 * (1 + bias.abs())).all()
    exact = layer.quantizer(weight) * multiplier.view(-1, 1, 1, 1)
    off = (frozen.value() - exact).abs() / frozen.grid.step
    assert off[live].max() <= 1.001 and off[live & (multiplier > 0)].max() <= 1e-3  # a lowest code has no opposite
    expected = layer.before_activation(codes, codes)
    layer.train(), layer.norm.eval()
    got = layer.before_activation(codes, codes)
    torch.testing.assert_close(got[:, live & (multiplier > 0)], expected[:, live & (multiplier > 0)])


def test_int32_biases_follow_the_inputs_step() -> None:
    net = composed("repq", QuantOptions(int32_bias=True), tiny_net()).eval()
    before = net.blocks[2].inference().frozen.bias_step
    with torch.no_grad():
        net.taps[2].raw_step.mul_(2)
    torch.testing.assert_close(net.blocks[2].inference().frozen.bias_step, 2 * before)


def test_a_copied_net_reads_its_own_quantizers() -> None:
    net = composed("repq", QuantOptions(int32_bias=True), tiny_net()).eval()
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.taps[2].raw_step.mul_(2)
    step = net.blocks[2].inference().frozen.bias_step
    torch.testing.assert_close(other.blocks[2].inference().frozen.bias_step, 2 * step)


def test_eval_mode_follows_every_change_and_freezes_once_inside_frozen_layers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net, other = (composed("repq_bn", QuantOptions(weight_bits=4), tiny_net()).eval() for _ in range(2))
    layers, frozen, real = quant_layers(net), [], QuantLayer.freeze
    monkeypatch.setattr(QuantLayer, "freeze", lambda layer: (frozen.append(layer), real(layer))[1])
    expected = net(images())
    assert len(frozen) == len(layers)
    with frozen_layers(net), frozen_layers(net):
        assert all(torch.equal(net(images()), expected) for _ in range(3))
        copied = copy.deepcopy(net)
        assert len(frozen) == 2 * len(layers)
        copied(images())
        assert len(frozen) == 3 * len(layers)
    step, kernel = net.taps[2].raw_step, net.blocks[1].kernel.block.branches["dense"]
    changes = {
        "by hand": lambda: step.data.mul_(1.5),
        "a statistic": lambda: kernel.norm.running_var.data.mul_(3),
        "an optimiser": lambda: torch.optim.SGD([kernel.conv.weight], 1.0).step(),
        "a state": lambda: net.load_state_dict(other.state_dict()),
    }
    kernel.conv.weight.grad = torch.randn_like(kernel.conv.weight)
    with torch.no_grad():
        for name, change in changes.items():
            before = net(images())
            change()
            assert not torch.equal(net(images()), before), name
    assert torch.equal(net(images()), other(images()))
    complaint = r"^blocks\.2 changed while frozen.* leave frozen_layers"
    with pytest.raises(RuntimeError, match=complaint), frozen_layers(net), torch.no_grad():
        step.mul_(2)


@pytest.mark.parametrize("mode", ["plain", *TRAINING_MODES])
def test_every_branchs_latent_weight_is_clipped_and_nothing_else(mode: str) -> None:
    net = composed(mode, BNN, hardtanh_net(plain_block if mode == "plain" else repvgg_block))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(50)
    others = {name: p.clone() for name, p in net.named_parameters() if p.dim() < 2}
    clip_latent_weights(net)
    for name, parameter in net.named_parameters():
        if parameter.dim() > 1:
            assert parameter.abs().max() == 1
        else:
            assert torch.equal(parameter, others[name])
    branches = [module for module in net.modules() if isinstance(module, ConvBranch)]
    assert all(branch.conv.weight.abs().max() <= 1 for branch in branches)
    assert mode == "merged" or mode == "plain" or len(branches) == 2 * 6


def test_other_quantizers_leave_latent_weights_alone() -> None:
    net = composed("repq", QuantOptions("bwn", "lsq", 1, 8), tiny_net())
    with torch.no_grad():
        net.blocks[1].kernel.block.branches["dense"].conv.weight.fill_(5)
    clip_latent_weights(net)
    assert net.blocks[1].kernel.block.branches["dense"].conv.weight.max() == 5


def test_weights_without_a_scale_do_not_decay() -> None:
    options = OptimOptions(name="sgd", weight_decay=0.1, label_smoothing=0.0, decay_also=["*"])
    for quant, decays in ((BNN, False), (QuantOptions("twn", "lsq", 2, 8), True)):
        net = composed("repq", quant, hardtanh_net())
        kernel = net.blocks[1].kernel.block.branches["dense"].conv.weight
        groups = parameter_groups(net, options)
        decayed = [p for group in groups if group["weight_decay"] for p in group["params"]]  # type: ignore[attr-defined]
        assert any(parameter is kernel for parameter in decayed) == decays


def test_depthwise_layers_have_a_step_per_channel() -> None:
    from repq_cli.models.mobilenet import mobilenet_v1

    net = mobilenet_v1(plain_block, 3, 5, [1] * 6, 0.125)
    quant = QuantOptions(granularity="tensor")
    layers = quant_layers(compose(net, ModeOptions("plain"), quant))
    channels = {name: layer.quantizer.channels for name, layer in layers.items()}  # type: ignore[union-attr]
    assert channels["layers.1.block"] == 4
    assert channels["layers.2.block"] is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_calibration_names_the_tensor_that_is_not_finite(value: float) -> None:
    net = compose(tiny_net(), ModeOptions("repq"), QuantOptions())
    x = images()
    x[0, 0, 0, 0] = value
    with pytest.raises(CheckError, match=r"The activation tensor taps\.0 holds NaN or infinity"):
        calibrate(net, x, "min_error")
    with torch.no_grad():
        net.blocks[1].kernel.block.branches["dense"].conv.weight[0] = value
    with pytest.raises(CheckError, match=r"The merged weight of layer blocks\.1 holds NaN or infinity"):
        calibrate(net, images(), "min_error")


@pytest.mark.parametrize(
    ("size", "complaint"),
    [(1e38, r"goes up to \S*e\+38"), (1e-12, "goes up to 1e-12 only, less than the smallest step")],
)
def test_calibration_names_what_overflows_or_vanishes(size: float, complaint: str) -> None:
    """Values whose squares are no float32, and those that would all have code 0; a dead tensor, all zero, may be."""
    for method in ("lsq", "lsqplus", "affine"):
        net = compose(tiny_net(), ModeOptions("repq"), QuantOptions(act_method=method, first_last="same"))  # type: ignore[arg-type]
        with pytest.raises(CheckError, match=rf"The activation tensor taps\.0 {complaint}"):
            calibrate(net, torch.full((2, 3, 12, 11), size), "min_error")
        calibrate(net, torch.zeros(2, 3, 12, 11), "min_error")
    net = compose(tiny_net(plain_block), ModeOptions("ptq"), QuantOptions())
    with torch.no_grad():
        net.blocks[1].kernel.weight.copy_(torch.full_like(net.blocks[1].kernel.weight, size))
    with pytest.raises(CheckError, match=rf"The merged weight of layer blocks\.1 {complaint}"):
        calibrate(net, images(), "min_error")


def test_an_unsigned_quantizer_on_signed_values_is_an_error_that_names_the_layer() -> None:
    net = hardtanh_net()
    net.taps[2] = Tap(signed=False)
    with pytest.raises(CheckError, match=r"The activation tensor taps\.2 goes down to -1"):
        composed("repq", QuantOptions(), net)
    for method in ("lsqplus", "affine"):  # these find the range themselves
        composed("repq", QuantOptions(act_method=method), net)  # type: ignore[arg-type]


def test_an_all_zero_batch_and_kernel_can_be_calibrated() -> None:
    net = tiny_net()
    with torch.no_grad():
        for parameter in net.blocks[1].parameters():
            parameter.zero_()
    for quant in (QuantOptions(), QuantOptions("twn", "affine", 2, 8), QuantOptions("bwn", "lsqplus", 1, 8)):
        found = compose(net, ModeOptions("repq"), quant)
        calibrate(found, torch.zeros(4, 3, 12, 11), "min_error", net)
        assert torch.isfinite(found.eval()(images())).all()


@pytest.mark.parametrize(
    ("quant", "kinds"),
    [
        (QuantOptions("twn", "lsq", 2, 4), {"LSQ", "TernaryWeight"}),
        (QuantOptions("bwn", "sign", 1, 1, first_last="fp"), {"ScaledSignWeight", "SignActivation"}),
        (QuantOptions("affine", "affine", 4, 4), {"AffineWeight", "AffineActivation"}),
        (QuantOptions("lsq", "lsqplus", 4, 4), {"LSQ", "LSQPlus"}),
    ],
)
def test_methods_of_weights_and_activations_are_chosen_apart(quant: QuantOptions, kinds: set[str]) -> None:
    net = compose(hardtanh_net(), ModeOptions("repq"), quant)
    assert {type(module).__name__ for module in quantizers(net).values()} == kinds


def test_first_and_last_layers_fall_back_to_a_method_that_has_eight_bits() -> None:
    net = compose(hardtanh_net(), ModeOptions("repq"), QuantOptions("bwn", "sign", 1, 1))
    assert isinstance(net.blocks[0].quantizer, LSQ)
    assert isinstance(net.taps[0], LSQ)
    assert net.blocks[0].quantizer.bits == net.classifier.quantizer.bits == 8
    affine = compose(hardtanh_net(), ModeOptions("repq"), QuantOptions("affine", "affine", 4, 4))
    assert isinstance(affine.taps[0], AffineActivation)
    same = compose(
        hardtanh_net(), ModeOptions("repq"), QuantOptions("bwn", act_bits=32, weight_bits=1, first_last="fp")
    )
    assert isinstance(same.blocks[0].quantizer, NoQuantizer)


def test_an_int32_bias_of_a_dead_channel_is_kept() -> None:
    """Its weights are zero, or so small that their step would leave the bias no int32."""
    quant = QuantOptions("affine", "affine", int32_bias=True)
    for factor in (0.0, 1e-9):
        net = tiny_net()
        with torch.no_grad():
            for branch in net.blocks[2].branches.values():
                branch.norm.weight[0] *= factor
                branch.norm.bias[0] = 1.0
        layer = composed("repq", quant, net).eval().blocks[2]
        frozen, wanted = layer.inference().frozen, layer.kernel_of_inference()[1]
        assert (frozen.bias.abs() < 2**31).all()
        torch.testing.assert_close(frozen.bias_value(), wanted, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(frozen.value(), layer.quantizer(layer.merged_weight()), rtol=0, atol=1e-6)


@pytest.mark.parametrize("bits", [1, 2])
def test_a_plain_net_starts_near_its_fp_net(bits: int) -> None:
    """Codes of one and two bits change the statistics, which an unfolded batch norm learned of the float weights."""
    net = randomise(repvgg(plain_block, 3, 5, [1, 2, 1, 1], [0.5] * 4, [1, 1, 2, 1, 2])).eval()
    with torch.no_grad():
        for block in (module for module in net.modules() if isinstance(module, ConvBranch)):
            assert block.norm is not None
            nn.init.uniform_(block.norm.weight, 0.5, 1.5)
    quant = QuantOptions(weight_bits=bits, act_bits=8)  # type: ignore[arg-type]
    found = composed("plain", quant, net).eval()
    with torch.no_grad():
        pair = torch.stack([found(images()).flatten(), net(images()).flatten()])
    assert torch.corrcoef(pair)[0, 1] > 0.999


def test_signs_of_an_unsigned_tensor_are_refused_with_its_name() -> None:
    with pytest.raises(ConfigError, match=r"the activation tensor taps\.1 has no value below zero"):
        compose(tiny_net(), ModeOptions("repq"), BNN)


@pytest.mark.parametrize(
    ("options", "bound"),
    [
        ({}, 1.0),
        ({"latent_range": "glorot"}, (1.5 / (10 * 9)) ** 0.5),
        ({"stochastic": True}, (1.5 / (10 * 9)) ** 0.5),
        ({"stochastic": True, "latent_range": "one"}, 1.0),
    ],
)
def test_the_range_of_float_weights_is_one_or_glorots(options: dict[str, Any], bound: float) -> None:
    quant = QuantOptions("sign", act_bits=32, weight_bits=1, first_last="same", **options)
    quantizer = weight_quantizer(quant, torch.Size([6, 4, 3, 3]), edge=False)
    assert quantizer.latent_bound == pytest.approx(bound)


def test_training_applies_the_bounds() -> None:
    net = composed("repq", BNN, hardtanh_net()).train()
    kernel = net.blocks[1].kernel.block.branches["dense"].conv.weight
    with torch.no_grad():
        kernel.fill_(3.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    training_step(net, (images(), torch.zeros(16, dtype=torch.long)), Classification(), optimizer, 1e-3, None)
    assert kernel.max() == 1


def test_input_scale_is_that_of_the_group() -> None:
    raw = torch.randn(2, 6, 5, 5)
    scale = input_scale(raw, torch.Size([4, 3, 3, 3]), 1, 1)
    for group in range(2):
        alone = input_scale(raw[:, 3 * group : 3 * group + 3], torch.Size([2, 3, 3, 3]), 1, 1)
        torch.testing.assert_close(scale[:, 2 * group : 2 * group + 2], alone.expand(-1, 2, -1, -1))
