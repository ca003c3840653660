"""Every operation of deployed networks: trained, deployed, integers and ONNX are one."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from operations import Parts, conv, differences, frozen, linear
from torch import Tensor, nn

from repq_cli.answers import tensors
from repq_cli.deploy.check import compare_integers
from repq_cli.deploy.freeze import freeze, unsupported
from repq_cli.deploy.integer import IntegerNet
from repq_cli.deploy.network import DeployedNet
from repq_cli.deploy.onnx_form import Form
from repq_cli.deploy.onnx_graph import to_onnx
from repq_cli.deploy.onnx_run import OnnxNet
from repq_cli.deploy.operations.base import FORMAT_OF_ANY_NETWORK
from repq_cli.quant.lsq import LSQ


def test_convolutions_of_any_window(subtests: pytest.Subtests) -> None:
    """Of their own for rows and columns: stride, padding, dilation, kernel; padding of every side; transposed."""
    random.seed(0)
    torch.manual_seed(0)
    for number in range(10):
        groups, outputs = random.choice([(1, 6), (2, 6), (4, 4)])
        size, dilation, stride = ((random.randint(1, 3), random.randint(1, 3)) for _ in range(3))
        window = {"stride": stride, "dilation": dilation, "groups": groups}
        if number % 2:
            window |= {"padding": (random.randint(0, 1), random.randint(0, 2))}
            more = [random.randrange(max(pair)) for pair in zip(stride, dilation, strict=True)]
            window |= {"output_padding": tuple(more)}
        else:
            window |= {"padding": tuple(random.randint(0, 2) for _ in range(random.choice((2, 4))))}
        with subtests.test(size=size, **window):
            net = Parts(
                lambda net, x: net.after(net.conv(net.before(x))),
                before=LSQ(8, True),
                conv=conv(4, outputs, size, **window),
                after=LSQ(8, True),
            )
            integers, others, onnx = differences(net, torch.randn(2, 4, 9, 8))
            assert integers <= 1 and others <= 1 and onnx <= 1.001


# By name: a function of two maps [N, 4, 7, 6] and what gates them, [N, 4, 1, 1].
Operation = Callable[[Tensor, Tensor, Tensor], Tensor]


def shuffled(x: Tensor) -> Tensor:
    images, channels, rows, columns = x.size()
    return x.view(images, 2, channels // 2, rows, columns).transpose(1, 2).contiguous().view(images, -1, rows, columns)


def unary(function: Callable[[Tensor], Tensor]) -> Operation:
    return lambda x, y, gate: function(x)


SMOOTH = {
    "silu": F.silu,
    "hardswish": F.hardswish,
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
    "tanh": lambda x: x.tanh(),
    "mish": F.mish,
    "softplus": F.softplus,
    "elu": lambda x: F.elu(x, 0.7),
    "gelu": F.gelu,
    "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "leaky relu": lambda x: F.leaky_relu(x, 0.1),
    "relu6": F.relu6,
    "hardtanh": F.hardtanh,
    "clip": lambda x: x.clamp(-0.37, 2.1),
    "clip below": lambda x: torch.clamp(x, min=0.2),
    "hard swish by hand": lambda x: x * F.relu6(x + 3) / 6,
    "square": lambda x: x**2,
    "affine": lambda x: 1 - (x - 0.3) * -0.77 / 1.3,
}
SUMS = {
    "sum": lambda x, y, gate: x + y + x,
    "sum of a list": lambda x, y, gate: sum([x, y, y]),
    "difference": lambda x, y, gate: x - y,
    "scaled sum": lambda x, y, gate: torch.add(x, y, alpha=0.2) + 0.3 * y,
    "product": lambda x, y, gate: x * y,
    "gate": lambda x, y, gate: x * torch.sigmoid(gate),
    "gate of places": lambda x, y, gate: x * torch.sigmoid(y[:, :1]),
    "cat": lambda x, y, gate: torch.cat([x, y, F.silu(x)], dim=1),
    "cat of rows": lambda x, y, gate: torch.cat((x, y), 2),
}
POOLS = {
    "max": lambda x, y, gate: F.max_pool2d(x, 3, 1, 1),
    "max of any window": lambda x, y, gate: F.max_pool2d(x, (3, 2), (2, 1), (1, 0), (1, 2), ceil_mode=True),
    "max of maxima": lambda x, y, gate: F.max_pool2d(F.max_pool2d(x, 5, 1, 2), 5, 1, 2),
    "average": lambda x, y, gate: F.avg_pool2d(x, 3, 2, 1),
    "average of what is there": lambda x, y, gate: F.avg_pool2d(x, (2, 3), (1, 2), (1, 0), count_include_pad=False),
    "average, ceil": lambda x, y, gate: F.avg_pool2d(x, 2, 2, 1, ceil_mode=True),
    "average, ceil, of what is there": lambda x, y, gate: F.avg_pool2d(x, 3, 2, 1, True, False),
    "average by 5": lambda x, y, gate: F.avg_pool2d(x, 3, 2, 0, divisor_override=5),
    "mean": lambda x, y, gate: x.mean((2, 3), keepdim=True),
    "mean flat": lambda x, y, gate: x.mean([-2, -1]),
    "largest": lambda x, y, gate: x.amax((2, 3)),
    "adaptive average": lambda x, y, gate: F.adaptive_avg_pool2d(x, (7, 3)),
    "adaptive max": lambda x, y, gate: F.adaptive_max_pool2d(x, (1, 2)),
}
SHAPES = {
    "slice": lambda x, y, gate: x[:, 1:3],
    "focus": lambda x, y, gate: torch.cat([x[..., :6:2, ::2], x[..., 1::2, 1::2]], 1),
    "chunk": lambda x, y, gate: x.chunk(2, 1)[1] + x.chunk(2, 1)[0],
    "split": lambda x, y, gate: torch.cat(torch.split(x, [1, 3], dim=1)[::-1], 1),
    "shuffle": lambda x, y, gate: shuffled(x),
    "shuffle of torch": lambda x, y, gate: F.channel_shuffle(x, 2),
    "pixel shuffle": lambda x, y, gate: F.pixel_shuffle(x, 2),
    "pixel unshuffle": lambda x, y, gate: F.pixel_unshuffle(x[:, :, :6], 2),
    "pad": lambda x, y, gate: F.pad(x, (1, 2, 0, 1), value=0.31),
    "pad by reflection": lambda x, y, gate: F.pad(x, (1, 2, 0, 1), mode="reflect"),
    "pad by repetition": lambda x, y, gate: F.pad(x, (1, 2, 0, 1), mode="replicate"),
    "flatten": lambda x, y, gate: x.flatten(1),
    "view": lambda x, y, gate: x.view(x.size(0), -1),
    "reshape": lambda x, y, gate: x.reshape(x.shape[0], 2, 2, 42).permute(0, 2, 1, 3),
    "nearest": lambda x, y, gate: F.interpolate(x, scale_factor=2),
    "nearest to a size": lambda x, y, gate: F.interpolate(x, size=(9, 13)),
    "nearest by a fraction": lambda x, y, gate: F.interpolate(x, scale_factor=(1.5, 0.7)),
    "bilinear": lambda x, y, gate: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "bilinear to another's size": lambda x, y, gate: F.interpolate(gate[:, :2], size=x.shape[2:], mode="bilinear"),
    "bilinear by corners": lambda x, y, gate: F.interpolate(x, size=(10, 3), mode="bilinear", align_corners=True),
}
TABLES = set(SMOOTH) - {"hard swish by hand", "square", "affine"}
ALL = {**{name: unary(function) for name, function in SMOOTH.items()}, **SUMS, **POOLS, **SHAPES}


@pytest.mark.parametrize("codes", [True, False], ids=["of codes", "of sums"])
def test_operations_are_the_same_in_every_engine(codes: bool, subtests: pytest.Subtests) -> None:
    """Of quantized maps and of what convolutions give, which has a scale for every channel; a quantizer is behind."""
    torch.manual_seed(0)
    for name, function in ALL.items():
        with subtests.test(operation=name):
            parts = {"first": conv(3, 4, 1), "second": conv(3, 4, 3, padding=1), "pool": nn.AdaptiveAvgPool2d(1)}
            quantizers = {key: LSQ(8, True) for key in ("image", "x_codes", "y_codes", "answer")} if codes else {}
            quantizers = {"image": LSQ(8, True), "answer": LSQ(8, True)} | quantizers

            def forward(net: Any, image: Tensor, function: Operation = function) -> Tensor:
                image = net.image(image)
                x, y = net.first(image), net.second(image)
                if codes:
                    x, y = net.x_codes(x), net.y_codes(y)
                return net.answer(function(x, y, net.pool(y)))

            integers, others, onnx = differences(Parts(forward, **parts, **quantizers), 2 * torch.randn(2, 3, 7, 6))
            assert integers <= 1 and others <= 2 and onnx <= 1.001
            if codes and name in TABLES:
                assert integers == 0


class Detector(nn.Module):
    """Two maps and classes, by name; a sum of lists, a gate, spatial pyramid pooling, a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.stem, self.a = LSQ(8, True), conv(3, 8, 3, nn.SiLU(), stride=2, padding=1), LSQ(8, True)
        self.left, self.right = conv(8, 4, 1, nn.PReLU(4)), conv(8, 4, (1, 3), nn.Hardtanh(-2, 3), padding=(0, 1))
        self.b, self.deep, self.c = LSQ(8, True), conv(16, 6, 1, nn.ReLU()), LSQ(8, False)
        self.up = conv(6, 8, 2, nn.LeakyReLU(0.1), stride=2, output_padding=0)
        self.pool, self.d, self.classes = nn.AdaptiveAvgPool2d(1), LSQ(8, False), linear(6, 5)
        self.slopes, self.scale = nn.PReLU(8), nn.Parameter(torch.rand(8, 1, 1) - 0.5)
        self.e, self.drop = LSQ(8, True), nn.Dropout(0.2)

    def forward(self, image: Tensor) -> dict[str, Any]:
        x = self.a(self.stem(self.image(image)))
        y = torch.cat([self.left(x), self.right(x)], 1)
        pooled = F.max_pool2d(y, 3, 1, 1)
        deep = self.c(self.deep(self.b(torch.cat((y, pooled), dim=1))))
        up = self.e(self.slopes(self.up(deep)) * self.scale)
        scores = self.classes(self.d(torch.flatten(self.pool(self.drop(deep)), 1)))
        return {"maps": [deep, (up,)], "scores": scores.softmax(-1)}


@torch.no_grad()
def test_a_detector_gives_its_maps_and_classes_in_every_engine(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 12, 10)
    net = Detector()
    deployed = frozen(net, x)
    deployed.save(tmp_path)
    deployed = DeployedNet.load(tmp_path)
    assert deployed.graph["format"] == FORMAT_OF_ANY_NETWORK
    assert [node["op"] for node in deployed.nodes][1:3] == ["conv", "silu"]
    expected = deployed(x)
    engines = [IntegerNet(deployed), OnnxNet(to_onnx(deployed, Form(float_biases=True)).SerializeToString(), 0, 1)]
    for answer in [net(x), *(engine(x) for engine in engines)]:
        assert set(answer) == {"maps", "scores"} and len(answer["maps"]) == 2
        for found, own in zip(tensors(answer), tensors(expected), strict=True):
            assert (found - own).abs().max() <= 0.02 * own.abs().max()
    assert all(torch.equal(*pair) for pair in zip(tensors(net(x)), tensors(expected), strict=True))
    assert compare_integers(deployed, IntegerNet(deployed), [x], _alike).max_lsb <= 1


def _alike(found: Tensor, expected: Tensor) -> Tensor:
    return ((found - expected).abs().flatten(1).amax(1) <= 0.02 * expected.abs().max()).float() * 100


class Unshippable(nn.Module):
    """Three steps without a deployed form among others."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.shrink = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Softshrink()

    def forward(self, x: Tensor) -> Tensor:
        x = self.shrink(self.norm(self.conv(x)))
        y = torch.cumsum(x, 1).view(x.size(0), -1)
        return y.sort()[0]


def test_all_that_has_no_form_is_said_at_once() -> None:
    net = Unshippable()
    found = unsupported(net, (3, 8, 8), known=(nn.BatchNorm2d,))
    assert [(refusal.name, refusal.kind) for refusal in found] == [
        ("shrink", "Softshrink"),
        ("cumsum", "torch.cumsum"),
        ("sort", "Tensor.sort"),
    ]
    assert net.training and all(refusal.reason.endswith(".") for refusal in found)
    with pytest.raises(ValueError, match=r"BatchNorm2d of layer norm.*Softshrink.*torch.cumsum.*Tensor.sort"):
        freeze(net, {"input_shape": [3, 8, 8]})
    flat = Parts(lambda net, x: x.view(x.size(0), -1))
    assert unsupported(flat, (3, 8, 8)) == [] and "give an example" in unsupported(flat)[0].reason
