"""Arithmetic with a constant: a number, or one of each channel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from repq_cli.deploy.fixed_point import INT32_MAX, per_channel, quantize_multiplier, rescaled, saturated
from repq_cli.deploy.integer_scales import Scaled, fine_scale
from repq_cli.deploy.operations.base import FORMAT_OF_ANY_NETWORK, Constants, Node, Operation, schema
from repq_cli.deploy.operations.tables import of_codes, passed
from repq_cli.deploy.tracing import Call, Ref, RefusedError

if TYPE_CHECKING:
    from repq_cli.deploy.integer import IntegerNet
    from repq_cli.deploy.network import DeployedNet
    from repq_cli.deploy.onnx_graph import OnnxGraph

ONNX = {"add": "Add", "subtract": "Sub", "multiply": "Mul", "divide": "Div", "subtract_from": "Sub"}


class Arithmetic(Operation):
    """``x + c``, ``x - c``, ``x c``, ``x / c`` or ``c - x``; c: ``value``, or the tensor ``operand [C]``."""

    name = "arithmetic"
    keys = schema(function=Literal["add", "subtract", "multiply", "divide", "subtract_from"])
    others = schema(value=float, operand=str)
    tensors = ("operand",)
    keeps_numbers = False

    def format(self, node: Node) -> int:
        return FORMAT_OF_ANY_NETWORK

    def problems(self, node: Node, known: Mapping[str, Node], tensors: Mapping[str, Tensor]) -> Iterator[str]:
        if ("value" in node) == ("operand" in node):
            yield "has a value and an operand, or none of them"
            return
        tensor = torch.tensor(float(node["value"])) if "value" in node else tensors.get(node["operand"])
        if tensor is None or not tensor.is_floating_point() or tensor.dim() > 1 or not bool(tensor.isfinite().all()):
            yield "has an operand that is no number of each channel"
        elif node["function"] == "divide" and not bool((tensor != 0).all()):
            yield "divides by zero"

    def compute(self, net: DeployedNet, node: Node, x: Tensor) -> Tensor:
        held = net.held(node, "operand")
        c = node["value"] if held is None else held.view(-1, *[1] * (x.dim() - 2))
        function = node["function"]
        if function in ("add", "subtract"):
            return x + c if function == "add" else x - c
        if function == "subtract_from":
            return c - x
        return x * c if function == "multiply" else x / c

    def scales(self, node: Node, known: list[Scaled], net: IntegerNet) -> tuple[Constants, Scaled]:
        """A factor belongs to the scale, its sign to the integers; a term becomes integers of a fine scale."""
        (given,), function = known, node["function"]
        if given.codes and "value" in node:
            return of_codes(self, node, given, net)
        is_value = "value" in node
        c = torch.tensor([float(node["value"])]) if is_value else net.deployed.stored[node["operand"]].flatten()
        c = c.double()
        if function in ("multiply", "divide"):
            factor = c if function == "multiply" else 1 / c
            scale = torch.where(factor == 0, given.scale, given.scale * factor.abs())
            return {"sign": factor.sign().to(torch.int32)}, Scaled(scale, given.bound)
        bound = (given.scale * given.bound).max().item() + c.abs().max().item()
        scale = torch.tensor([fine_scale(bound, net.next_steps(node["name"]))], dtype=torch.float64)
        sign = -1 if function == "subtract_from" else 1
        term = ((-c if function == "subtract" else c) / scale).round().long()
        constants: Constants = {"multiplier": quantize_multiplier(sign * given.scale / scale), "term": term}
        return constants, Scaled(scale, (torch.tensor([bound], dtype=torch.float64) / scale).clamp(max=INT32_MAX))

    def integers(self, net: IntegerNet, node: Node, constants: Constants, x: Tensor) -> Tensor:
        if "sign" in constants:
            return x * per_channel(constants["sign"], x)
        if "term" in constants:
            return saturated(rescaled(x, constants["multiplier"]) + per_channel(constants["term"], x))
        return passed(constants, x)

    def onnx(self, graph: OnnxGraph, node: Node) -> None:
        (source,), name = node["inputs"], node["name"]
        tensor = graph.stored(node, "operand")
        shape = (1, -1, *[1] * (len(graph.sizes[source]) - 2))
        c = graph.constant(f"{name}.operand", node["value"] if tensor is None else tensor.view(shape))
        inputs = [c, source] if node["function"] == "subtract_from" else [source, c]
        graph.add_node(ONNX[node["function"]], inputs, name)


def with_constant(call: Call, function: str, x: Ref, c: Any) -> Ref:
    """Arithmetic of a tensor with a number, or with a tensor that has one or one for each channel."""
    if isinstance(c, Tensor) and c.numel() > 1:
        per_channel = c.dim() >= 3 and c.shape[-3] == c.numel()
        if not per_channel and not (c.shape[-1] == c.numel() and len(call.sizes(x)) == 2):
            raise RefusedError(
                f"What {call.where} computes with has the sizes {list(c.shape)}; a number for each channel has a form."
            )
        return call.emit("arithmetic", [x], function=function, operand=call.store("operand", c.flatten()))
    value = c.item() if isinstance(c, Tensor) else c
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise RefusedError(f"What {call.where} computes with is {str(value)[:50]}: numbers have a deployed form.")
    if function == "divide" and value == 0:
        raise RefusedError(f"{call.where} divides by zero.")
    return call.emit("arithmetic", [x], function=function, value=float(value))
