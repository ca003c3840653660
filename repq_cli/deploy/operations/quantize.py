"""Quantizers of activations: numbers in, codes out, counted from zero."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from repq_cli.deploy.fixed_point import quantize_multiplier, rescaled
from repq_cli.deploy.integer_scales import Scaled
from repq_cli.deploy.operations.base import Bits, Code, Constants, Node, Operation, Optional, as_given, schema
from repq_cli.deploy.operations.checks import problems_of_codes, problems_of_tensors
from repq_cli.deploy.operations.tables import looked_up
from repq_cli.deploy.tracing import Call, Ref, form
from repq_cli.quant.quantizer import NoQuantizer, Quantizer

if TYPE_CHECKING:
    from repq_cli.deploy.integer import IntegerNet
    from repq_cli.deploy.network import DeployedNet
    from repq_cli.deploy.onnx_graph import OnnxGraph

CODES = {"low": Code, "high": Code, "by_sign": bool}


class Quantize(Operation):
    """``clip(round(x / step) + zero_point, low, high) - zero_point``; by sign ``low`` below zero, else ``high``."""

    name = "quantize"
    keys = schema(CODES, bits=Bits, step=str, zero_point=Optional)
    tensors = ("step", "zero_point")

    size = as_given

    def problems(self, node: Node, known: Mapping[str, Node], tensors: Mapping[str, Tensor]) -> Iterator[str]:
        yield from problems_of_codes(node)
        yield from problems_of_tensors(node, tensors, {"step": {1}, "zero_point": {1}})

    def compute(self, net: DeployedNet, node: Node, x: Tensor) -> Tensor:
        if node["by_sign"]:
            return torch.where(x >= 0, node["high"], node["low"]).to(x.dtype)
        step, zero_point = net.held(node, "step"), net.held(node, "zero_point")
        assert step is not None
        codes = (x / step).round()
        if zero_point is None:
            return codes.clamp(node["low"], node["high"])
        return (codes + zero_point).clamp(node["low"], node["high"]) - zero_point

    def scales(self, node: Node, known: list[Scaled], net: IntegerNet) -> tuple[Constants, Scaled]:
        """Of floats, the image's or those made of it, nothing is known: they are quantized as they are."""
        stored = net.deployed.stored
        step = stored[node["step"]].double().view(1)
        zero_point = int(stored[node["zero_point"]]) if node["zero_point"] else 0
        largest = max(abs(node["low"] - zero_point), abs(node["high"] - zero_point))
        out = Scaled(step, torch.tensor([float(largest)], dtype=torch.float64), codes=True)
        constants: Constants = {"zero_point": zero_point}
        if known and known[0].values is not None:
            constants["table"] = self.compute(net.deployed, node, known[0].values).to(torch.int32)
        elif known and not node["by_sign"]:
            constants["multiplier"] = quantize_multiplier(known[0].scale / step)
        return constants, out

    def integers(self, net: IntegerNet, node: Node, constants: Constants, x: Tensor) -> Tensor:
        if "table" in constants:
            return looked_up(constants["table"], x)
        if node["by_sign"]:
            return torch.where(x >= 0, node["high"], node["low"]).to(torch.int32)
        codes = rescaled(x, constants["multiplier"]) + constants["zero_point"]
        return (codes.clamp(node["low"], node["high"]) - constants["zero_point"]).to(torch.int32)

    def onnx(self, graph: OnnxGraph, node: Node) -> None:
        graph.quantize(node)


@form(NoQuantizer)
def _nothing(call: Call, module: NoQuantizer, x: Ref) -> Ref:
    return x


@form(Quantizer)
def _quantize(call: Call, module: Quantizer, x: Ref) -> Ref:
    grid = module.grid(torch.zeros(()))
    node = {"bits": module.bits, **codes_of(module), "step": call.store("step", grid.step)}
    return call.emit("quantize", [x], **node, zero_point=call.store("zero_point", grid.zero_point))


def codes_of(quantizer: Quantizer) -> Node:
    """Which integers are codes, and whether they are given by sign or by rounding."""
    return {"low": quantizer.codes.low, "high": quantizer.codes.high, "by_sign": quantizer.by_sign}
