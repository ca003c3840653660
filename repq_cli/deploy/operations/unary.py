"""Functions of one number: activation functions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repq_cli.deploy.fixed_point import INT32_MAX, Multiplier, per_channel, quantize_multiplier, rescaled, saturated
from repq_cli.deploy.integer_scales import Scaled
from repq_cli.deploy.operations.base import FORMAT_OF_ANY_NETWORK, Constants, Node, Operation, as_given, schema
from repq_cli.deploy.operations.tables import of_codes, passed
from repq_cli.deploy.tracing import Call, Ref, RefusedError, form

if TYPE_CHECKING:
    from repq_cli.deploy.integer import IntegerNet
    from repq_cli.deploy.network import DeployedNet
    from repq_cli.deploy.onnx_graph import OnnxGraph


class Activation(Operation):
    """A function that a convolution may have behind its sums."""

    def onnx(self, graph: OnnxGraph, node: Node) -> None:
        if not graph.clipped(node["name"]):
            self.onnx_of(graph, node, node["inputs"][0])

    def onnx_of(self, graph: OnnxGraph, node: Node, source: str) -> None:
        """As nodes of ONNX that read ``source`` and give what ``node`` gives."""
        raise NotImplementedError


class Cut(Activation):
    """Numbers below or above an end become that end."""

    ends: tuple[float, float] = (-math.inf, math.inf)

    size = as_given

    def limits(self, node: Node) -> tuple[float, float]:
        return self.ends

    def scales(self, node: Node, known: list[Scaled], net: IntegerNet) -> tuple[Constants, Scaled]:
        (given,), ends = known, self.limits(node)
        if given.codes and not all(math.isinf(end) or end == 0 for end in ends):
            return of_codes(self, node, given, net)
        return integer_ends(ends, given.scale), given

    def integers(self, net: IntegerNet, node: Node, constants: Constants, x: Tensor) -> Tensor:
        if "least" not in constants:
            return passed(constants, x)
        least, most = (None if end is None else per_channel(end, x) for end in (constants["least"], constants["most"]))
        return x.clamp(least, most)

    def onnx_of(self, graph: OnnxGraph, node: Node, source: str) -> None:
        ends = zip(("least", "most"), self.limits(node), strict=True)
        names = [graph.constant(f"{node['name']}.{key}", end) for key, end in ends]
        graph.add_node("Clip", [source, *names], node["name"])


def integer_ends(ends: tuple[float, float], scale: Tensor) -> Constants:
    """The integers at which numbers of this scale are cut: ``least`` and ``most``, None where they are not."""

    def integer(end: float) -> Tensor | None:
        return None if math.isinf(end) else (end / scale).round().clamp(-INT32_MAX, INT32_MAX).to(torch.int32)

    return {"least": integer(ends[0]), "most": integer(ends[1])}


class Relu(Cut):
    """``max(x, 0)``."""

    name = "relu"
    ends = (0.0, math.inf)

    def compute(self, net: DeployedNet, node: Node, x: Tensor) -> Tensor:
        return F.relu(x)

    def onnx_of(self, graph: OnnxGraph, node: Node, source: str) -> None:
        graph.add_node("Relu", [source], node["name"])


class Relu6(Cut):
    """``min(max(x, 0), 6)``."""

    name = "relu6"
    ends = (0.0, 6.0)

    def compute(self, net: DeployedNet, node: Node, x: Tensor) -> Tensor:
        return F.relu6(x)


class Hardtanh(Cut):
    """``min(max(x, -1), 1)``."""

    name = "hardtanh"
    ends = (-1.0, 1.0)

    def compute(self, net: DeployedNet, node: Node, x: Tensor) -> Tensor:
        return F.hardtanh(x)


class PRelu(Activation):
    """``x``, below zero times a slope, which all channels or each of them have."""

    name = "prelu"
    keeps_numbers = False
    keys = schema(slope=str)
    tensors: tuple[str, ...] = ("slope",)

    def format(self, node: Node) -> int:
        return FORMAT_OF_ANY_NETWORK

    def problems(self, node: Node, known: Mapping[str, Node], tensors: Mapping[str, Tensor]) -> Iterator[str]:
        name = node["slope"]
        if name not in tensors or not tensors[name].is_floating_point() or tensors[name].dim() != 1:
            yield "has a slope that is no tensor of numbers"

    def compute(self, net: DeployedNet, node: Node, x: Tensor) -> Tensor:
        slope = net.held(node, "slope")
        assert slope is not None
        return F.prelu(x, slope)

    def slopes(self, net: DeployedNet, node: Node) -> Tensor:
        """``[C]`` or ``[1]``."""
        return net.stored[node["slope"]].double().flatten()

    def scales(self, node: Node, known: list[Scaled], net: IntegerNet) -> tuple[Constants, Scaled]:
        (given,), slope = known, self.slopes(net.deployed, node)
        if given.codes and len(slope) == 1:
            return of_codes(self, node, given, net)
        bound = given.bound * slope.abs().clamp(min=1)
        room = max(int((INT32_MAX / bound.max()).log2().floor()), 0)
        scaled = Scaled(given.scale * 2.0**-room, (bound * 2.0**room).clamp(max=INT32_MAX))
        return {"slope": quantize_multiplier(slope), "room": room}, scaled

    def integers(self, net: IntegerNet, node: Node, constants: Constants, x: Tensor) -> Tensor:
        if "slope" not in constants:
            return passed(constants, x)
        x, slope = x << constants.get("room", 0), constants["slope"]
        assert isinstance(slope, Multiplier)
        below = saturated(rescaled(x, slope))
        # What a positive slope rounds to zero stays negative, since signs may be taken of it.
        below = torch.where(per_channel(slope.mantissa, x) > 0, below.clamp(max=-1), below)
        return torch.where(x < 0, below, x)

    def onnx_of(self, graph: OnnxGraph, node: Node, source: str) -> None:
        slope = graph.constant(f"{node['name']}.slope", graph.net.stored[node["slope"]].view(-1, 1, 1))
        graph.add_node("PRelu", [source, slope], node["name"])


RELU, RELU6, HARDTANH, PRELU = Relu(), Relu6(), Hardtanh(), PRelu()
ENTRIES = (RELU, RELU6, HARDTANH)
# What a convolution may do behind its sums, by what its node says.
ACTIVATIONS: dict[str, Activation | None] = {"none": None} | {op.name: op for op in (*ENTRIES, PRELU)}


def forms_of(op: str, module: type[nn.Module], *functions: Any) -> None:
    """Register a module and functions that have no arguments but where to put what they give."""

    @form(module)
    def of_module(call: Call, module: nn.Module, x: Ref) -> Ref:
        return call.emit(op, [x])

    @form(*functions)
    def of_function(call: Call, x: Ref, inplace: bool = False) -> Ref:
        return call.emit(op, [x])


forms_of("relu", nn.ReLU, F.relu, torch.relu, F.relu_, "relu", "relu_")
forms_of("relu6", nn.ReLU6, F.relu6)


@form(nn.PReLU)
def _prelu(call: Call, module: nn.PReLU, x: Ref) -> Ref:
    return call.emit("prelu", [x], slope=call.store("slope", module.weight))


@form(nn.Hardtanh)
def _hardtanh_layer(call: Call, module: nn.Hardtanh, x: Ref) -> Ref:
    return _hardtanh(call, x, module.min_val, module.max_val)


@form(F.hardtanh)
def _hardtanh(call: Call, x: Ref, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Ref:
    if (min_val, max_val) == (-1, 1):
        return call.emit("hardtanh", [x])
    return call.emit("clip", [x], low=float(min_val), high=float(max_val))


@form(torch.clamp, torch.clip, "clamp", "clip", "clamp_")
def _clip(call: Call, x: Ref, min: float | None = None, max: float | None = None) -> Ref:
    if not all(end is None or isinstance(end, int | float) for end in (min, max)):
        raise RefusedError(f"The ends of {call.kind} at {call.where} are no numbers: it has no deployed form.")
    low, high = (None if end is None else float(end) for end in (min, max))
    return call.emit("clip", [x], low=low, high=high)
