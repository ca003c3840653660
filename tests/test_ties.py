"""Sums of codes that are zero: training and every engine give them the sign that integers have."""

from __future__ import annotations

import itertools

import pytest
import torch
from test_integer import NETS, frozen
from torch import Tensor, nn

from repq_cli.deploy.check import compare
from repq_cli.deploy.freeze import freeze
from repq_cli.deploy.integer import IntegerNet
from repq_cli.deploy.network import DeployedNet
from repq_cli.deploy.onnx_form import Form
from repq_cli.deploy.onnx_graph import to_onnx
from repq_cli.deploy.onnx_run import OnnxNet
from repq_cli.deploy.xnor_net import XnorNet
from repq_cli.devices import use_device
from repq_cli.errors import ConfigError
from repq_cli.modes.kernels import FixedKernel
from repq_cli.quant.affine import AffineWeight
from repq_cli.quant.binary import ScaledSignWeight, SignActivation
from repq_cli.quant.layers import QuantConv, QuantLinear
from repq_cli.quant.lsq import LSQ
from repq_cli.quant.quantizer import Quantizer
from repq_cli.quant.sums import Steps, scaled_sums, weighted_sums
from repq_cli.quant.ternary import TernaryWeight
from repq_cli.quant.windows import Window
from repq_cli.quant.wiring import link
from repq_cli.tasks.classification import Classification

pytestmark = pytest.mark.xdist_group("frozen")  # the worker that has made the networks of test_integer.py

SIGNS = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=4)))
IMAGES = torch.where(SIGNS > 0, -0.0, -0.3).view(16, 4, 1, 1)  # negative zero counts as positive


class OneLayer(nn.Module):
    """Signs of four channels, a layer of sixteen, and the signs of what it gives, which a classifier passes on."""

    def __init__(self, reads: Quantizer, quantizer: Quantizer, conv: nn.Conv2d, norm: nn.BatchNorm2d | None) -> None:
        super().__init__()
        self.tap, self.flatten, self.signs = reads, nn.Flatten(), SignActivation()
        geometry = {"stride": 1, "padding": 0, "groups": 1, "int32_bias": True}
        self.conv = QuantConv(FixedKernel(conv), quantizer, nn.Hardtanh(), norm, **geometry)  # type: ignore[arg-type]
        self.classifier = QuantLinear(nn.Linear(16, 16, bias=False), LSQ(8, signed=True))
        nn.init.eye_(self.classifier.linear.weight)
        link(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.signs(self.flatten(self.conv(self.tap(x), x))))


def one_layer(weight: str, act: str, norm: nn.BatchNorm2d | None = None) -> tuple[OneLayer, Tensor, Tensor]:
    """A network, its layer's sums for ``IMAGES``, and what one is worth in each channel."""
    reads = SignActivation() if act == "sign" else LSQ(1, signed=True)
    quantizer = {
        "bwn": ScaledSignWeight(),
        "lsq, 1 bit": LSQ(1, signed=True, channels=16),
        "lsq, 4 bits": LSQ(4, signed=True, channels=16),
        "twn": TernaryWeight(),
        "affine": AffineWeight(4, per_channel=True),
    }[weight]
    conv = nn.Conv2d(4, 16, 1)
    with torch.no_grad():
        conv.weight.copy_((SIGNS * torch.randint(1, 4, SIGNS.shape) * 0.0737).view(16, 4, 1, 1))
        for lsq in (reads, quantizer):
            if isinstance(lsq, LSQ):
                lsq.raw_step.uniform_(0.03, 0.3)
    net = OneLayer(reads, quantizer, conv, norm).eval()
    grid = quantizer.grid(conv.weight)
    sums = SIGNS @ grid.from_zero(quantizer.integers(conv.weight)).flatten(1).T
    return net, sums, grid.step.detach().flatten().expand(16) * reads.grid(IMAGES).step.detach()


def engines(deployed: DeployedNet, x: Tensor) -> dict[str, Tensor]:
    """What every engine answers that can run the network."""
    found = {"deployed": deployed(x), "integer": IntegerNet(deployed)(x)}
    for biases in (False, True):
        found[f"onnx {biases}"] = OnnxNet(to_onnx(deployed, Form(float_biases=biases)).SerializeToString(), 0, 1)(x)
    try:
        found["xnor"] = XnorNet(deployed)(x)
    except ConfigError:
        assert all(node["bits"] > 1 for node in deployed.nodes if node["op"] == "conv")
    return found


DESCRIPTION = {"task": "classification", "input_shape": [4, 1, 1]}
WEIGHTS = ["bwn", "lsq, 1 bit", "lsq, 4 bits", "twn", "affine"]


@pytest.mark.parametrize("act", ["sign", "lsq"])
@pytest.mark.parametrize("weight", WEIGHTS)
def test_every_engine_and_training_take_the_sign_of_the_integer(weight: str, act: str) -> None:
    """All inputs, many filters, biases that are integers and cancel many a sum."""
    net, sums, worth = one_layer(weight, act)
    bias = torch.arange(16) % 5 - 2
    with torch.no_grad():
        net.conv.kernel.bias.copy_(bias * worth)  # type: ignore[union-attr, operator]
    expected = torch.where(sums + bias >= 0, 1.0, -1.0)
    assert (sums + bias == 0).sum() >= 10
    for name, answer in engines(freeze(net, DESCRIPTION), IMAGES).items():
        assert torch.equal(answer, expected), name
    assert torch.equal(net(IMAGES), expected)
    assert torch.equal(net.train()(IMAGES), expected)


@pytest.mark.parametrize("act", ["sign", "lsq"])
@pytest.mark.parametrize("weight", WEIGHTS)
def test_a_batch_norm_that_cancels_a_sum_is_the_same_threshold_everywhere(weight: str, act: str) -> None:
    """Means of whole sums, with multipliers above and below zero, zero, and so small that biases outgrow an int32."""
    norm = nn.BatchNorm2d(16)
    net, sums, worth = one_layer(weight, act, norm)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.9, -0.7, 0.0, 1e-12]).repeat(4))
        norm.bias.copy_(torch.tensor([0.0, -0.0, 1e-20, -1e-20]).repeat_interleave(4))
        norm.running_mean.copy_(sums.diagonal() * worth)  # type: ignore[union-attr]
        norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    deployed = freeze(net, DESCRIPTION)
    assert compare(net, deployed, [IMAGES], Classification().agreement).max_abs == 0
    answers = engines(deployed, IMAGES)
    assert all(torch.equal(answer, answers["deployed"]) for answer in answers.values()), answers


HARD_TANH = "model.activation=hardtanh"
QUANTS = {
    "bnn": ["quant=bnn"],
    "xnor": ["quant=xnor", "quant.first_last=8"],
    "xnor with int32 biases": ["quant=xnor", "quant.first_last=8", "quant.int32_bias=true", "mode.post_bn=false"],
    "w1a1, signed": ["quant=w1a1", HARD_TANH],
    "twn and signs": ["quant=twn", "quant.act_bits=1", "quant.act_method=sign", "quant.first_last=8", HARD_TANH],
}
MODELS = {
    "resnet18 acnet": ["+model=resnet18_cifar", "rep=acnet", "mode=ptq"],
    "resnet18": NETS["resnet18"],
    "repvgg": [*NETS["repvgg"], HARD_TANH],
}


@pytest.mark.no_cover  # tracing would cost more than it tells
@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("model", MODELS)
def test_whole_networks_of_signs_are_the_same_in_every_engine(model: str, quant: str) -> None:
    """Code by code; behind the last sign, sums of 8 bits are rounded by each engine in its own way."""
    deployed, _ = frozen(*MODELS[model], *QUANTS[quant])
    x = torch.randn(32, *deployed.graph["input_shape"])
    reference, own = deployed.run(x), IntegerNet(deployed).run(x)
    signs = [name for name, node in deployed.quantizers.items() if node["by_sign"]]
    assert len(signs) >= 4 and all(torch.equal(own[name].float(), reference[name]) for name in signs)
    answers = engines(deployed, x)
    assert torch.equal(answers.pop("xnor", answers["deployed"]), answers["deployed"])
    answers.pop("onnx False")  # rounds the classifier's bias
    for name, answer in answers.items():
        torch.testing.assert_close(answer, answers["deployed"], rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.accelerator
def test_a_gpu_takes_the_signs_of_integers(subtests: pytest.Subtests) -> None:
    """Where float32 is not rounded to TF32, cuDNN may still multiply by fractions."""
    device = use_device("cuda")
    for (model, overrides), quant in itertools.product(MODELS.items(), QUANTS):
        with subtests.test(model=model, quant=quant):
            deployed, _ = frozen(*overrides, *QUANTS[quant])
            x = torch.randn(32, *deployed.graph["input_shape"])
            own = IntegerNet(deployed).run(x)
            found = deployed.to(device).run(x.to(device))
            for name, node in deployed.quantizers.items():
                if node["by_sign"]:
                    assert torch.equal(found[name].cpu(), own[name].float()), name


@pytest.mark.parametrize("window", [Window(1, 1, 1), Window(2, 0, 2), None])
def test_gradients_are_those_of_the_values(window: Window | None) -> None:
    """Of input, weight and bias, in float64: to scale sums instead of what is summed changes the rounding only."""
    shape = ((3, 4, 7, 6), (6, 4 // window.groups, 3, 3)) if window else ((5, 8), (6, 8))
    draw = torch.Generator().manual_seed(0)
    codes = [torch.randint(-7, 8, size, generator=draw).double() for size in shape]
    steps = Steps(torch.tensor(0.173, dtype=torch.float64), torch.rand(6, *[1] * (len(shape[1]) - 1)).double() + 0.1)
    tensors = [(codes[0] * steps.x).requires_grad_(), (codes[1] * steps.weight).requires_grad_()]
    tensors.append(torch.randn(6, dtype=torch.float64, requires_grad=True))
    x, weight, bias = tensors
    found, expected = scaled_sums(x, weight, bias, steps, window), weighted_sums(x, weight, bias, window)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    direction = torch.randn_like(expected)
    gradients = [torch.autograd.grad((y * direction).sum(), tensors) for y in (found, expected)]
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
