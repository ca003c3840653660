"""Small quantized networks of any operation, and whether all engines agree on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repq_cli.deploy.freeze import freeze
from repq_cli.deploy.graph import check
from repq_cli.deploy.integer import IntegerNet
from repq_cli.deploy.network import DeployedNet
from repq_cli.deploy.onnx_form import Form
from repq_cli.deploy.onnx_graph import to_onnx
from repq_cli.deploy.onnx_run import OnnxNet
from repq_cli.modes.kernels import FixedKernel
from repq_cli.quant.layers import QuantConv, QuantLinear
from repq_cli.quant.lsq import LSQ
from repq_cli.quant.quantizer import Quantizer
from repq_cli.quant.wiring import link


def conv(inputs: int, outputs: int, size: Any, activation: nn.Module | None = None, **window: Any) -> QuantConv:
    """A convolution of 8 bits with random weights; window: as ``QuantConv``'s."""
    rows, columns = (size, size) if isinstance(size, int) else size
    window = {"stride": 1, "padding": 0, "groups": 1} | window
    plain = nn.Conv2d(inputs, outputs, (rows, columns), groups=window["groups"])
    return QuantConv(FixedKernel(plain), LSQ(8, True, outputs, symmetric=True), activation or nn.Identity(), **window)


def linear(inputs: int, outputs: int) -> QuantLinear:
    return QuantLinear(nn.Linear(inputs, outputs), LSQ(8, True, outputs, symmetric=True))


class Parts(nn.Module):
    """``forward(net, x)`` with modules by name."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **parts: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


class Everything(nn.Module):
    """Every operation that other people's networks have, once."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.codes, self.last = LSQ(8, True), LSQ(8, True), LSQ(8, True)
        self.first = conv(3, 4, (3, 2), nn.Hardtanh(-2, 3), padding=(1, 0, 1, 1), dilation=(1, 1))
        self.second = conv(4, 8, 2, nn.PReLU(), stride=(1, 2), padding=(1, 0), output_padding=0, dilation=(1, 2))
        self.slopes, self.scale = nn.PReLU(8), nn.Parameter(torch.rand(8, 1, 1))

    def forward(self, image: Tensor) -> Any:
        x = self.slopes(self.second(self.codes(self.first(self.image(image / 2)))))
        for function in (
            F.silu,
            F.hardswish,
            F.hardsigmoid,
            torch.tanh,
            F.mish,
            F.softplus,
            F.elu,
            F.gelu,
            F.leaky_relu,
        ):
            x = function(x)
        x = x * torch.sigmoid(F.adaptive_avg_pool2d(x, 1)) + 0.5 * x - x.mean((2, 3), keepdim=True) * self.scale
        x = F.avg_pool2d(F.max_pool2d(x, (3, 2), 1, (1, 0), ceil_mode=True), 2, 1, 1, False, False)
        x = F.interpolate(F.pad(x, (1, 0, 0, 1)), (8, 8), mode="bilinear")
        x = torch.cat([F.adaptive_max_pool2d(x, (4, 4)), F.adaptive_avg_pool2d(x, (4, 4))], 1)
        x = F.channel_shuffle(F.pixel_shuffle(F.pixel_unshuffle(x, 2), 2), 2)[:, 2:]
        x = self.last(x)
        return [x, {"all": x.reshape(-1, 2, 7, 16).permute(0, 2, 1, 3).amax((2, 3)).log_softmax(1)}]


@torch.no_grad()
def prepared(net: nn.Module, x: Tensor) -> nn.Module:
    """``net`` in eval mode, its steps set by what it reads."""
    hooks = []
    for part in net.modules():
        if isinstance(part, QuantConv | QuantLinear):
            part.calibrate("min_error")
    weights = {part.quantizer for part in net.modules() if isinstance(part, QuantConv | QuantLinear)}
    for part in net.modules():
        if isinstance(part, Quantizer) and part not in weights:
            hooks.append(part.register_forward_pre_hook(lambda module, given: module.calibrate(given[0])))
    net.eval()(x)
    for hook in hooks:
        hook.remove()
    link(net)
    return net


def frozen(net: nn.Module, x: Tensor) -> DeployedNet:
    """The network as its files would have it, its description checked."""
    deployed = freeze(prepared(net, x), {"task": "classification", "input_shape": list(x.shape[1:])})
    check(deployed.graph, deployed.stored)
    return deployed


@torch.no_grad()
def differences(net: nn.Module, x: Tensor) -> tuple[float, int, float]:
    """Frozen against deployed: equal, or AssertionError; integers and ONNX in codes of the quantizers.

    Returns the largest difference of a code of integers given the reference's codes, in steps; how many of a thousand
    codes differ; and the largest difference of ONNX's answers, in steps of the last quantizer.
    """
    deployed = frozen(net, x)
    expected = net(x)
    assert torch.equal(deployed(x), expected), "deployed"
    reference = deployed.run(x)
    assert deployed.sizes() == {name: [1, *output.shape[1:]] for name, output in reference.items()}
    own = IntegerNet(deployed).run(x, reference)
    apart = [(own[name] - reference[name]).abs() for name in deployed.quantizers]
    step = deployed.stored[deployed.nodes[-1]["step"]] if deployed.nodes[-1]["op"] == "quantize" else torch.tensor(1.0)
    onnx = OnnxNet(to_onnx(deployed, Form(float_biases=True)).SerializeToString(), 0, 1)(x)
    assert onnx.shape == expected.shape
    others = torch.cat([part.flatten() for part in apart]).gt(0).float().mean().item()
    return max(part.max().item() for part in apart), round(1000 * others), ((onnx - expected).abs().max() / step).item()
