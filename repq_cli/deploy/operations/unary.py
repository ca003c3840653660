"""Functions of one number: activation functions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repq_cli.deploy.fixed_point import INT32_MAX, Multiplier, per_channel, rescaled
from repq_cli.deploy.integer_scales import Scaled
from repq_cli.deploy.operations.base import Constants, Node, Operation, schema
from repq_cli.deploy.tracing import Call, Ref, form

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

    keeps_codes = True
    ends: tuple[float, float] = (-math.inf, math.inf)

    def limits(self, node: Node) -> tuple[float, float]:
        return self.ends

    def scales(self, node: Node, known: list[Scaled], net: IntegerNet) -> tuple[Constants, Scaled]:
        return integer_ends(self.limits(node), known[0].scale), known[0]

    def integers(self, net: IntegerNet, node: Node, constants: Constants, x: Tensor) -> Tensor:
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
    keys = schema(slope=str)
    tensors = ("slope",)

    def compute(self, net: DeployedNet, node: Node, x: Tensor) -> Tensor:
        slope = net.held(node, "slope")
        assert slope is not None
        return F.prelu(x, slope)

    def integers(self, net: IntegerNet, node: Node, constants: Constants, x: Tensor) -> Tensor:
        slope = constants["slope"]
        assert isinstance(slope, Multiplier)
        below = rescaled(x, slope).to(torch.int32)
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


@form(nn.ReLU)
def _relu(call: Call, module: nn.ReLU, x: Ref) -> Ref:
    return call.emit("relu", [x])


@form(nn.ReLU6)
def _relu6(call: Call, module: nn.ReLU6, x: Ref) -> Ref:
    return call.emit("relu6", [x])


@form(nn.Hardtanh)
def _hardtanh(call: Call, module: nn.Hardtanh, x: Ref) -> Ref:
    return call.emit("hardtanh", [x])
