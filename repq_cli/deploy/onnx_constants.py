"""The nodes and constants of an ONNX graph: weights and biases of a deployed network as codes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from repq_cli.deploy.network import DeployedNet
from repq_cli.deploy.onnx_form import Form
from repq_cli.deploy.onnx_small import small_codes, type_of
from repq_cli.deploy.operations.base import Node
from repq_cli.errors import ConfigError

INT8 = (-128, 127)
HALF = (-64, 64)  # of weights whose products with uint8 can be summed in pairs in 16 bits: 2 * 255 * 64 < 2**15


class Constants:
    """Collects ``nodes`` and ``constants``. ``weights``: the least and the greatest code of a weight."""

    def __init__(self, net: DeployedNet, form: Form) -> None:
        self.net, self.form = net, form
        self.weights = HALF if form.reduce_range else INT8
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.by_name = {node["name"]: node for node in net.nodes}

    def add_node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """One ONNX node; the name of its output."""
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        """One constant; its name."""
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        content = np.ascontiguousarray(array.astype(dtype)).reshape(array.shape)  # which numbers lose there
        self.constants.append(numpy_helper.from_array(content, name))
        return name

    def stored(self, node: Node, key: str) -> Tensor | None:
        """A tensor of the file, in float64."""
        return self.net.stored[node[key]].double() if node.get(key) else None

    def weight(self, node: Node, step: Tensor) -> str:
        """A layer's weight. step: ``[O]``, what a code of it is worth, or 1 of a float one."""
        name = f"{node['name']}.weight"
        per_channel = (-1, *[1] * (len(node["shape"]) - 1))
        if node["bits"] == 32:
            return self.constant(name, self.net.stored[node["weight"]].double() * step.view(per_channel))
        spread = self._spread(node)
        stored = self.stored(node, "weight_zero_point")
        zero_point = torch.zeros(1, dtype=torch.float64) if stored is None else stored.flatten()
        from_zero = self.net.codes(node) - zero_point.view(per_channel)
        # From zero, so that a zero-point that is odd and halved moves no weight.
        zeros = (zero_point * spread).round().expand(step.shape)
        if self.form.symmetric and bool(zeros.any()):
            raise ConfigError(
                f"zero_points=none: the weights of {node['name']} have zero-points: train with "
                f"quant.weight_method=lsq, or export with zero_points=auto."
            )
        codes = (from_zero * spread).round() + zeros.view(per_channel)
        kind = type_of(node) if self.form.int4 and spread >= 1 else None
        small = None if kind is None else small_codes(self, node, kind, int(spread))
        inputs = [
            small or self.constant(f"{name}.codes", codes.clamp(*self.weights), np.int8),
            self.constant(f"{name}.step", step / spread),
            self.constant(f"{name}.zero_point", zeros, np.int8),
        ]
        return self.add_node("DequantizeLinear", inputs, name, axis=0)

    def turned(self, node: Node, weight: str) -> str:
        """A weight ``[O, I/g, kh, kw]`` as ``[I, O/g, kh, kw]``, which ConvTranspose reads; runtimes do it once."""
        (outputs, inputs, *sizes), groups = node["shape"], node["groups"]
        apart = self.constant(f"{weight}.apart", [groups, outputs // groups, inputs, *sizes], np.int64)
        shape = self.constant(f"{weight}.shape", [groups * inputs, outputs // groups, *sizes], np.int64)
        grouped = self.add_node("Reshape", [weight, apart], f"{weight}.grouped")
        swapped = self.add_node("Transpose", [grouped], f"{weight}.swapped", perm=[0, 2, 1, 3, 4])
        return self.add_node("Reshape", [swapped, shape], f"{weight}.turned")

    def weight_step(self, node: Node, multiplier: Tensor | None) -> Tensor:
        """``[O]``: what a weight's code is worth with a batch norm's multiplier, or the multiplier alone."""
        step = self.stored(node, "weight_step")
        step = torch.ones(1, dtype=torch.float64) if step is None else step.flatten()
        return (step if multiplier is None else step * multiplier).expand(node["shape"][0])

    def _spread(self, node: Node) -> float:
        """The power of two by which weight codes are multiplied, and their step divided: the same weights.

        The sums' step, in which biases are rounded, is that much finer; at 4 bit it would be coarse beside the next
        codes. It is a half, and codes are rounded, where the range is reduced to less than they need.
        """
        spread, (low, high) = 1.0, self._outermost(node)
        while self.weights[0] <= 2 * spread * low and 2 * spread * high <= self.weights[1]:
            spread *= 2
        return spread if self.weights[0] <= spread * low and spread * high <= self.weights[1] else spread / 2

    def _outermost(self, node: Node) -> tuple[int, int]:
        """The least and the greatest code of a weight: those of a split identity may be far from all others."""
        identity = self.net.stored[node["identity"]] if node.get("identity") else torch.zeros(1)
        return min(node["low"], int(identity.min())), max(node["high"], int(identity.max()))

    def bias(self, node: Node) -> Tensor | None:
        """A layer's bias in numbers."""
        bias, step = self.stored(node, "bias"), self.stored(node, "bias_step")
        return bias if bias is None or step is None else bias * step

    def bias_constant(self, node: Node, bias: Tensor, multiplier: Tensor | None) -> str:
        """An int32 where the sums have a step, else a float."""
        name, before = f"{node['name']}.bias", self.by_name.get(node["inputs"][0])
        if self.form.symmetric or node["bits"] == 32 or before is None or before["op"] != "quantize":
            return self.constant(name, bias)
        step = self.weight_step(node, multiplier) / self._spread(node) * self.net.stored[before["step"]].double()
        codes = bias / step
        if node["bias_step"]:  # integers already, of a step that is a power of two of this one
            ratio = (self.net.stored[node["bias_step"]].double() / step).log2().round().exp2()
            codes = self.net.stored[node["bias"]] * ratio
        codes = codes.round().clamp(-(2**31), 2**31 - 1)
        inputs = [self.constant(f"{name}.codes", codes, np.int32), self.constant(f"{name}.step", step)]
        return self.add_node("DequantizeLinear", inputs, name, axis=0)
