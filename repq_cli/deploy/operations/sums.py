"""Sums and products of tensors."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from repq_cli.deploy.fixed_point import INT32_MAX, quantize_multiplier, rescaled, saturated
from repq_cli.deploy.integer_scales import Scaled, fine_scale
from repq_cli.deploy.operations.base import Constants, Node, Operation
from repq_cli.deploy.tracing import Call, Ref, form

if TYPE_CHECKING:
    from repq_cli.deploy.integer import IntegerNet
    from repq_cli.deploy.network import DeployedNet
    from repq_cli.deploy.onnx_graph import OnnxGraph


class Add(Operation):
    """``x + y``."""

    name = "add"
    inputs = (2, 2)

    def compute(self, net: DeployedNet, node: Node, x: Tensor, y: Tensor) -> Tensor:
        return x + y

    def scales(self, node: Node, known: list[Scaled], net: IntegerNet) -> tuple[Constants, Scaled]:
        bound = sum((given.scale * given.bound).max().item() for given in known)
        scale = torch.tensor([fine_scale(bound, net.next_steps(node["name"]))], dtype=torch.float64)
        multipliers = [quantize_multiplier(given.scale / scale) for given in known]
        largest = (torch.tensor([bound], dtype=torch.float64) / scale).clamp(max=INT32_MAX)
        return {"multipliers": multipliers}, Scaled(scale, largest)

    def integers(self, net: IntegerNet, node: Node, constants: Constants, x: Tensor, y: Tensor) -> Tensor:
        first, second = constants["multipliers"]
        return saturated(rescaled(x, first) + rescaled(y, second))

    def onnx(self, graph: OnnxGraph, node: Node) -> None:
        graph.add_node("Add", node["inputs"], node["name"])


@form(operator.add, operator.iadd, torch.add, "add", "add_")
def _add(call: Call, x: Ref, other: Ref) -> Ref:
    return call.emit("add", [x, other])
