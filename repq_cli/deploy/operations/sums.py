"""Sums and products of tensors."""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from repq_cli.deploy.fixed_point import INT32_MAX, quantize_multiplier, rescaled, rounding_shift, saturated
from repq_cli.deploy.integer_scales import Scaled, fine_scale
from repq_cli.deploy.operations.base import FORMAT_OF_ANY_NETWORK, Axis, Constants, Node, Operation, as_given, schema
from repq_cli.deploy.operations.constants import with_constant
from repq_cli.deploy.tracing import Call, Ref, RefusedError, form

if TYPE_CHECKING:
    from repq_cli.deploy.integer import IntegerNet
    from repq_cli.deploy.network import DeployedNet
    from repq_cli.deploy.onnx_graph import OnnxGraph


class Add(Operation):
    """``x + y``."""

    name = "add"
    inputs = (2, 2)

    size = as_given

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


class ScaledAdd(Add):
    """``x + factor * y``."""

    name = "scaled_add"
    keeps_numbers = False
    keys = schema(factor=float)

    def format(self, node: Node) -> int:
        return FORMAT_OF_ANY_NETWORK

    def compute(self, net: DeployedNet, node: Node, x: Tensor, y: Tensor) -> Tensor:
        return torch.add(x, y, alpha=node["factor"])

    def scales(self, node: Node, known: list[Scaled], net: IntegerNet) -> tuple[Constants, Scaled]:
        """Those of a sum, the second addend's scale times the factor, whose sign its multipliers take."""
        factor, (first, second) = node["factor"], known
        scaled = second._replace(scale=second.scale * max(abs(factor), 2.0**-60))
        constants, out = super().scales(node, [first, scaled], net)
        constants["multipliers"][1] = quantize_multiplier(second.scale * factor / out.scale)
        return constants, out

    def onnx(self, graph: OnnxGraph, node: Node) -> None:
        (x, y), name = node["inputs"], node["name"]
        if node["factor"] == -1:
            graph.add_node("Sub", [x, y], name)
        else:
            factor = graph.constant(f"{name}.factor", node["factor"])
            graph.add_node("Add", [x, graph.add_node("Mul", [y, factor], f"{name}.scaled")], name)


class Multiply(Operation):
    """``x y``; sizes of 1 are repeated."""

    name = "mul"
    keeps_numbers = False
    inputs = (2, 2)

    def format(self, node: Node) -> int:
        return FORMAT_OF_ANY_NETWORK

    def compute(self, net: DeployedNet, node: Node, x: Tensor, y: Tensor) -> Tensor:
        return x * y

    def scales(self, node: Node, known: list[Scaled], net: IntegerNet) -> tuple[Constants, Scaled]:
        """The product is halved until an int32 holds it, and then gets one scale."""
        x, y = known
        largest = (x.bound.max() * y.bound.max()).item()
        halved = max(math.ceil(math.log2(max(largest, 1) / 2**30)), 0)
        worth = x.scale * y.scale
        bound = (x.scale * x.bound).max().item() * (y.scale * y.bound).max().item()
        scale = torch.tensor([fine_scale(bound, net.next_steps(node["name"]))], dtype=torch.float64)
        constants: Constants = {"halved": halved, "multiplier": quantize_multiplier(worth * 2.0**halved / scale)}
        return constants, Scaled(scale, (torch.tensor([bound]).double() / scale).clamp(max=INT32_MAX))

    def integers(self, net: IntegerNet, node: Node, constants: Constants, x: Tensor, y: Tensor) -> Tensor:
        product = rounding_shift(x.long() * y.long(), torch.tensor(constants["halved"]))
        return saturated(rescaled(product, constants["multiplier"]))

    def onnx(self, graph: OnnxGraph, node: Node) -> None:
        graph.add_node("Mul", node["inputs"], node["name"])


class Concatenate(Operation):
    """Several tensors behind one another along an axis; channels keep the scales that they have."""

    name = "cat"
    keys = schema(axis=Axis)
    inputs = (1, 256)

    def format(self, node: Node) -> int:
        return FORMAT_OF_ANY_NETWORK

    def compute(self, net: DeployedNet, node: Node, *inputs: Tensor) -> Tensor:
        return torch.cat(inputs, node["axis"])

    def scales(self, node: Node, known: list[Scaled], net: IntegerNet) -> tuple[Constants, Scaled]:
        first = known[0].scale
        if all(len(given.scale) == 1 and torch.equal(given.scale, first) for given in known):
            bound = torch.stack([given.bound.max() for given in known]).max().view(1)
            return {"multipliers": None}, Scaled(first, bound, all(given.codes for given in known))
        if node["axis"] == 1:
            counts = [net.sizes[name][1] for name in node["inputs"]]
            parts = [
                (given.scale.expand(count), given.bound.expand(count))
                for given, count in zip(known, counts, strict=True)
            ]
            scales, bounds = (torch.cat(part) for part in zip(*parts, strict=True))
            return {"multipliers": None}, Scaled(scales, bounds)
        furthest = max((given.scale * given.bound).max().item() for given in known)
        scale = torch.tensor([fine_scale(furthest, net.next_steps(node["name"]))], dtype=torch.float64)
        largest = (torch.tensor([furthest], dtype=torch.float64) / scale).clamp(max=INT32_MAX)
        return {"multipliers": [quantize_multiplier(given.scale / scale) for given in known]}, Scaled(scale, largest)

    def integers(self, net: IntegerNet, node: Node, constants: Constants, *inputs: Tensor) -> Tensor:
        multipliers = constants["multipliers"]
        if multipliers is not None:
            inputs = tuple(saturated(rescaled(x, by)) for x, by in zip(inputs, multipliers, strict=True))
        return torch.cat(inputs, node["axis"])

    def onnx(self, graph: OnnxGraph, node: Node) -> None:
        graph.add_node("Concat", node["inputs"], node["name"], axis=node["axis"])


@form(operator.add, operator.iadd, torch.add, "add", "add_")
def _add(call: Call, x: Any, other: Any, alpha: float = 1) -> Ref:
    if isinstance(x, Ref) and isinstance(other, Ref):
        return call.emit("add", [x, other]) if alpha == 1 else call.emit("scaled_add", [x, other], factor=float(alpha))
    if not isinstance(x, Ref):
        x, other = other, x
    is_nothing = isinstance(other, int | float) and other == 0  # what Python's sum() begins with
    return x if is_nothing else with_constant(call, "add", x, _times(other, alpha))


@form(operator.sub, operator.isub, torch.sub, "sub", "sub_")
def _subtract(call: Call, x: Any, other: Any, alpha: float = 1) -> Ref:
    if isinstance(x, Ref) and isinstance(other, Ref):
        return call.emit("scaled_add", [x, other], factor=-float(alpha))
    if isinstance(x, Ref):
        return with_constant(call, "subtract", x, _times(other, alpha))
    return with_constant(call, "subtract_from", other, x)


@form(operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_", "multiply")
def _multiply(call: Call, x: Any, other: Any) -> Ref:
    if isinstance(x, Ref) and isinstance(other, Ref):
        if len(call.sizes(x)) != len(call.sizes(other)):
            raise RefusedError(f"The product at {call.where} is of tensors of {call.sizes(x)} and {call.sizes(other)}.")
        return call.emit("mul", [x, other])
    return with_constant(call, "multiply", *((x, other) if isinstance(x, Ref) else (other, x)))


@form(operator.truediv, operator.itruediv, torch.div, torch.true_divide, "div", "div_")
def _divide(call: Call, x: Any, other: Any) -> Ref:
    if not isinstance(x, Ref) or isinstance(other, Ref):
        raise RefusedError(f"The quotient at {call.where} is by a tensor: it has no deployed form.")
    return with_constant(call, "divide", x, other)


@form(operator.neg, torch.neg, "neg")
def _negative(call: Call, x: Ref) -> Ref:
    return with_constant(call, "multiply", x, -1)


@form(operator.pow, torch.pow, torch.square, "pow", "square")
def _power(call: Call, x: Ref, exponent: float = 2) -> Ref:
    if exponent != 2:
        raise RefusedError(f"The power {exponent} at {call.where} has no deployed form; squares have.")
    return call.emit("mul", [x, x])


@form(torch.cat, torch.concat, torch.concatenate)
def _concatenate(call: Call, tensors: list[Any], dim: int = 0) -> Ref:
    if not all(isinstance(part, Ref) for part in tensors):
        raise RefusedError(f"What is concatenated at {call.where} is not made of the image alone.")
    return tensors[0] if len(tensors) == 1 else call.emit("cat", tensors, axis=call.axis(tensors[0], dim))


def _times(value: Any, alpha: float) -> Any:
    return value if alpha == 1 else value * alpha
