"""Smooth functions of one number, and those with a slope or ends of their own.

In integers a function of codes that only quantizers read is a table, and so exact. A function of sums is a table of
``2 * REACH`` units, ``2 ** FINE`` intervals each, between whose entries integers interpolate; beyond it functions are
constant or ``x``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repq_cli.deploy.fixed_point import INT32_MAX, quantize_multiplier, rescaled, saturated
from repq_cli.deploy.integer_scales import Scaled, fine_scale
from repq_cli.deploy.operations.base import FORMAT_OF_ANY_NETWORK, Constants, Node, Operation, schema
from repq_cli.deploy.operations.tables import of_codes, passed
from repq_cli.deploy.operations.unary import Cut, PRelu, forms_of
from repq_cli.deploy.tracing import Call, Ref, RefusedError, form

if TYPE_CHECKING:
    from repq_cli.deploy.integer import IntegerNet
    from repq_cli.deploy.network import DeployedNet
    from repq_cli.deploy.onnx_graph import OnnxGraph

REACH, FINE, BITS = 16, 8, 20  # BITS: below the point of what is looked up


class Function(Operation):
    """``is_linear``: whether it is ``x`` from ``REACH`` on, and not a constant."""

    is_linear = False
    keeps_numbers = False

    def format(self, node: Node) -> int:
        return FORMAT_OF_ANY_NETWORK

    def scales(self, node: Node, known: list[Scaled], net: IntegerNet) -> tuple[Constants, Scaled]:
        (given,) = known
        if given.codes:
            return of_codes(self, node, given, net)
        places = torch.arange(-REACH * 2**FINE, REACH * 2**FINE + 2, dtype=torch.float64) / 2**FINE
        values = self.compute(net.deployed, node, places)
        bound = values.abs().max().item()
        if self.is_linear:
            bound = max(bound, (given.scale * given.bound).max().item())
        scale = torch.tensor([fine_scale(bound, net.next_steps(node["name"]))], dtype=torch.float64)
        constants: Constants = {"place": quantize_multiplier(given.scale * 2.0**BITS)}
        constants["table"] = (values / scale).round().long()
        constants["beyond"] = quantize_multiplier(given.scale / scale) if self.is_linear else None
        return constants, Scaled(scale, (bound / scale).clamp(max=INT32_MAX))

    def integers(self, net: IntegerNet, node: Node, constants: Constants, x: Tensor) -> Tensor:
        if "table" not in constants:
            return passed(constants, x)
        end = REACH << BITS
        place = rescaled(x, constants["place"])
        inside = place.clamp(-end, end) + end
        index, rest = inside >> (BITS - FINE), inside & ((1 << (BITS - FINE)) - 1)
        before, after = constants["table"][index], constants["table"][index + 1]
        y = before + (((after - before) * rest + (1 << (BITS - FINE - 1))) >> (BITS - FINE))
        if constants["beyond"] is not None:
            y = torch.where(place >= end, rescaled(x, constants["beyond"]), y)
        return saturated(y)


class Sigmoid(Function):
    """``1 / (1 + exp(-x))``."""

    name = "sigmoid"

    def compute(self, net: DeployedNet, node: Node, x: Tensor) -> Tensor:
        return torch.sigmoid(x)

    def onnx(self, graph: OnnxGraph, node: Node) -> None:
        graph.add_node("Sigmoid", node["inputs"], node["name"])


class HardSigmoid(Function):
    """``relu6(x + 3) / 6``."""

    name = "hardsigmoid"

    def compute(self, net: DeployedNet, node: Node, x: Tensor) -> Tensor:
        return F.hardsigmoid(x)

    def onnx(self, graph: OnnxGraph, node: Node) -> None:
        graph.add_node("HardSigmoid", node["inputs"], node["name"], alpha=1 / 6, beta=0.5)


class Tanh(Function):
    """``tanh(x)``."""

    name = "tanh"

    def compute(self, net: DeployedNet, node: Node, x: Tensor) -> Tensor:
        return torch.tanh(x)

    def onnx(self, graph: OnnxGraph, node: Node) -> None:
        graph.add_node("Tanh", node["inputs"], node["name"])


class Silu(Function):
    """``x sigmoid(x)``."""

    name = "silu"
    is_linear = True

    def compute(self, net: DeployedNet, node: Node, x: Tensor) -> Tensor:
        return F.silu(x)

    def onnx(self, graph: OnnxGraph, node: Node) -> None:
        (source,), name = node["inputs"], node["name"]
        graph.add_node("Mul", [source, graph.add_node("Sigmoid", [source], f"{name}.sigmoid")], name)


class HardSwish(Function):
    """``x relu6(x + 3) / 6``."""

    name = "hardswish"
    is_linear = True

    def compute(self, net: DeployedNet, node: Node, x: Tensor) -> Tensor:
        return F.hardswish(x)

    def onnx(self, graph: OnnxGraph, node: Node) -> None:
        graph.add_node("HardSwish", node["inputs"], node["name"])


class Mish(Function):
    """``x tanh(log(1 + exp(x)))``."""

    name = "mish"
    is_linear = True

    def compute(self, net: DeployedNet, node: Node, x: Tensor) -> Tensor:
        return F.mish(x)

    def onnx(self, graph: OnnxGraph, node: Node) -> None:
        (source,), name = node["inputs"], node["name"]
        inner = graph.add_node("Softplus", [source], f"{name}.softplus")
        graph.add_node("Mul", [source, graph.add_node("Tanh", [inner], f"{name}.tanh")], name)


class Softplus(Function):
    """``log(1 + exp(x))``."""

    name = "softplus"
    is_linear = True

    def compute(self, net: DeployedNet, node: Node, x: Tensor) -> Tensor:
        return F.softplus(x)

    def onnx(self, graph: OnnxGraph, node: Node) -> None:
        graph.add_node("Softplus", node["inputs"], node["name"])


class Elu(Function):
    """``x``, below zero ``alpha (exp(x) - 1)``."""

    name = "elu"
    keys = schema(alpha=float)
    is_linear = True

    def compute(self, net: DeployedNet, node: Node, x: Tensor) -> Tensor:
        return F.elu(x, node["alpha"])

    def onnx(self, graph: OnnxGraph, node: Node) -> None:
        graph.add_node("Elu", node["inputs"], node["name"], alpha=float(node["alpha"]))


class Gelu(Function):
    """``x Phi(x)``, or its approximation by tanh."""

    name = "gelu"
    keys = schema(approximate=Literal["none", "tanh"])
    is_linear = True

    def compute(self, net: DeployedNet, node: Node, x: Tensor) -> Tensor:
        return F.gelu(x, approximate=node["approximate"])

    def onnx(self, graph: OnnxGraph, node: Node) -> None:
        (source,), name = node["inputs"], node["name"]

        def times(factor: float, operand: str, ending: str) -> str:
            return graph.add_node("Mul", [operand, graph.constant(f"{name}.{ending}.by", factor)], f"{name}.{ending}")

        if node["approximate"] == "none":
            inner = graph.add_node("Erf", [times(math.sqrt(0.5), source, "scaled")], f"{name}.erf")
        else:
            square = graph.add_node("Mul", [source, source], f"{name}.square")
            cube = graph.add_node("Mul", [square, source], f"{name}.cube")
            bent = graph.add_node("Add", [source, times(0.044715, cube, "third")], f"{name}.bent")
            inner = graph.add_node("Tanh", [times(math.sqrt(2 / math.pi), bent, "scaled")], f"{name}.tanh")
        above = graph.add_node("Add", [inner, graph.constant(f"{name}.one", 1)], f"{name}.above")
        graph.add_node("Mul", [times(0.5, source, "half"), above], name)


class LeakyRelu(PRelu):
    """``x``, below zero times a slope."""

    name = "leaky_relu"
    keys = schema(slope=float)
    tensors = ()

    def format(self, node: Node) -> int:
        return FORMAT_OF_ANY_NETWORK

    def problems(self, node: Node, known: Mapping[str, Node], tensors: Mapping[str, Tensor]) -> Iterator[str]:
        return iter(())

    def compute(self, net: DeployedNet, node: Node, x: Tensor) -> Tensor:
        return F.leaky_relu(x, node["slope"])

    def slopes(self, net: DeployedNet, node: Node) -> Tensor:
        return torch.tensor([float(node["slope"])], dtype=torch.float64)

    def onnx_of(self, graph: OnnxGraph, node: Node, source: str) -> None:
        graph.add_node("LeakyRelu", [source], node["name"], alpha=float(node["slope"]))


class Clip(Cut):
    """``min(max(x, low), high)``, each where it is there."""

    name = "clip"
    keys = schema(low=float | None, high=float | None)

    def format(self, node: Node) -> int:
        return FORMAT_OF_ANY_NETWORK

    def problems(self, node: Node, known: Mapping[str, Node], tensors: Mapping[str, Tensor]) -> Iterator[str]:
        low, high = self.limits(node)
        if low > high:
            yield f"clips between {low} and {high}"

    def limits(self, node: Node) -> tuple[float, float]:
        low, high = node["low"], node["high"]
        return -math.inf if low is None else low, math.inf if high is None else high

    def compute(self, net: DeployedNet, node: Node, x: Tensor) -> Tensor:
        return torch.clamp(x, node["low"], node["high"])


SMOOTH = (Sigmoid(), HardSigmoid(), Tanh(), Silu(), HardSwish(), Mish(), Softplus(), Elu(), Gelu())
ENTRIES: tuple[Operation, ...] = (*SMOOTH, LeakyRelu(), Clip())

forms_of("sigmoid", nn.Sigmoid, torch.sigmoid, F.sigmoid, "sigmoid", "sigmoid_")
forms_of("hardsigmoid", nn.Hardsigmoid, F.hardsigmoid)
forms_of("tanh", nn.Tanh, torch.tanh, F.tanh, "tanh", "tanh_")
forms_of("silu", nn.SiLU, F.silu)
forms_of("hardswish", nn.Hardswish, F.hardswish)
forms_of("mish", nn.Mish, F.mish)


@form(nn.Softplus)
def _softplus_layer(call: Call, module: nn.Softplus, x: Ref) -> Ref:
    return _softplus(call, x, module.beta, module.threshold)


@form(F.softplus)
def _softplus(call: Call, x: Ref, beta: float = 1.0, threshold: float = 20.0) -> Ref:
    if (beta, threshold) != (1, 20):
        raise RefusedError(
            f"The softplus at {call.where} has beta={beta}, threshold={threshold}; 1 and 20 have a form."
        )
    return call.emit("softplus", [x])


@form(nn.ELU)
def _elu_layer(call: Call, module: nn.ELU, x: Ref) -> Ref:
    return call.emit("elu", [x], alpha=float(module.alpha))


@form(F.elu)
def _elu(call: Call, x: Ref, alpha: float = 1.0, inplace: bool = False) -> Ref:
    return call.emit("elu", [x], alpha=float(alpha))


@form(nn.GELU)
def _gelu_layer(call: Call, module: nn.GELU, x: Ref) -> Ref:
    return call.emit("gelu", [x], approximate=module.approximate)


@form(F.gelu)
def _gelu(call: Call, x: Ref, approximate: str = "none") -> Ref:
    return call.emit("gelu", [x], approximate=approximate)


@form(nn.LeakyReLU)
def _leaky_relu_layer(call: Call, module: nn.LeakyReLU, x: Ref) -> Ref:
    return call.emit("leaky_relu", [x], slope=float(module.negative_slope))


@form(F.leaky_relu)
def _leaky_relu(call: Call, x: Ref, negative_slope: float = 0.01, inplace: bool = False) -> Ref:
    return call.emit("leaky_relu", [x], slope=float(negative_slope))
