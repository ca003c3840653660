"""What answers are made of behind the last integers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repq_cli.deploy.fixed_point import per_channel
from repq_cli.deploy.integer_scales import Scaled
from repq_cli.deploy.operations.base import FORMAT_OF_ANY_NETWORK, Axis, Constants, Node, Operation, schema
from repq_cli.deploy.tracing import Call, Ref, form
from repq_cli.errors import ConfigError

if TYPE_CHECKING:
    from repq_cli.deploy.integer import IntegerNet
    from repq_cli.deploy.network import DeployedNet
    from repq_cli.deploy.onnx_graph import OnnxGraph


class Softmax(Operation):
    """``exp(x) / sum exp(x)`` along an axis, of answers: in floating point in every engine."""

    name = "softmax"
    keys = schema(axis=Axis)

    def format(self, node: Node) -> int:
        return FORMAT_OF_ANY_NETWORK

    def compute(self, net: DeployedNet, node: Node, x: Tensor) -> Tensor:
        return x.softmax(node["axis"])

    def scales(self, node: Node, known: list[Scaled], net: IntegerNet) -> tuple[Constants, None]:
        if any(node["name"] in other["inputs"] for other in net.nodes):
            raise ConfigError(
                f"The {self.name} of {node['name']} has no integers where something reads it: it may give answers "
                f"alone; run this network with engine=deployed."
            )
        return {"scale": known[0].scale.float()}, None

    def integers(self, net: IntegerNet, node: Node, constants: Constants, x: Tensor) -> Tensor:
        return self.compute(net.deployed, node, x.float() * per_channel(constants["scale"], x))

    def onnx(self, graph: OnnxGraph, node: Node) -> None:
        graph.add_node("Softmax", node["inputs"], node["name"], axis=node["axis"])


class LogSoftmax(Softmax):
    """The logarithm of softmax."""

    name = "log_softmax"

    def compute(self, net: DeployedNet, node: Node, x: Tensor) -> Tensor:
        return x.log_softmax(node["axis"])

    def onnx(self, graph: OnnxGraph, node: Node) -> None:
        graph.add_node("LogSoftmax", node["inputs"], node["name"], axis=node["axis"])


@form(nn.Softmax, nn.LogSoftmax)
def _softmax_layer(call: Call, module: nn.Softmax | nn.LogSoftmax, x: Ref) -> Ref:
    return _emitted(call, "softmax" if isinstance(module, nn.Softmax) else "log_softmax", x, module.dim)


@form(F.softmax, torch.softmax, "softmax")
def _softmax(call: Call, x: Ref, dim: int | None = None, **unused: object) -> Ref:
    return _emitted(call, "softmax", x, dim)


@form(F.log_softmax, torch.log_softmax, "log_softmax")
def _log_softmax(call: Call, x: Ref, dim: int | None = None, **unused: object) -> Ref:
    return _emitted(call, "log_softmax", x, dim)


def _emitted(call: Call, op: str, x: Ref, dim: int | None) -> Ref:
    return call.emit(op, [x], axis=call.axis(x, 1 if dim is None else dim))
