"""The deployed network as an ONNX graph in QDQ form: every tensor of codes between QuantizeLinear and DequantizeLinear.

Activation codes are uint8, signed ones moved by 128, since x86's kernels multiply uint8 by int8. Fewer bits, and the
activation functions in front, are a clip of the codes, so that nothing stands between a convolution and its quantizer,
and runtimes make one kernel of both. Weight codes of fewer bits are multiplied by a power of two. Biases are int32 in
units of the sums, as runtimes' kernels have them, so that a code at the edge of two can fall to the other side of it.
Where signs are taken of sums, and where a layer runs in floating point in any case, codes have a step of 1; the sums,
integers then, are scaled behind, as by the executor. Needs the extra ``export``.
"""

from __future__ import annotations

import functools
import math
from importlib.metadata import version
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor

from repq_cli.answers import leaves
from repq_cli.deploy.network import DeployedNet
from repq_cli.deploy.onnx_about import about
from repq_cli.deploy.onnx_about import codes as codes_of
from repq_cli.deploy.onnx_constants import INT8, Constants
from repq_cli.deploy.onnx_form import USUAL, Form
from repq_cli.deploy.onnx_stem import group_pixels
from repq_cli.deploy.operations import OPERATIONS
from repq_cli.deploy.operations.base import Node
from repq_cli.deploy.operations.unary import ACTIVATIONS, Activation
from repq_cli.deploy.signs import sums_before_signs
from repq_cli.errors import ConfigError
from repq_cli.quant.windows import pair, torch_padding

IR_VERSION = 10  # of the file; newer ones are not read by every runtime in use
UINT8 = (0, 255)


def to_onnx(net: DeployedNet, form: Form = USUAL) -> onnx.ModelProto:
    """The network for images of any number (and, for super-resolution, of any size); normalised as in training.

    The metadata say what the file holds, and as ``float_layers`` which layers have float biases in any form, being slow
    in integers. Raises ConfigError for XNOR-Net's K, which has no place in QDQ form, and for codes that the form's type
    has no room for.
    """
    graph = OnnxGraph(net, form)
    for node in net.nodes:
        OPERATIONS[node["op"]].onnx(graph, node)
    channels, rows, columns = net.graph["input_shape"]
    enlarges = net.graph["task"] == "super_resolution"
    sizes = ["rows", "columns"] if enlarges else [rows, columns]
    source = helper.make_tensor_value_info(net.graph["input"], TensorProto.FLOAT, ["images", channels, *sizes])
    answers = []
    for name in graph.outputs:
        size: list[Any] = ["images", *graph.sizes[name][1:]]
        size[2:] = ["enlarged rows", "enlarged columns"] if enlarges else size[2:]
        answers.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, size))
    made = helper.make_graph(graph.nodes, "repq", [source], answers, graph.constants)
    if not (form.float_biases or form.symmetric) and net.graph["task"] == "classification":
        group_pixels(made, channels, columns)
    versions = {"opset_imports": [helper.make_opsetid("", form.opset)], "ir_version": IR_VERSION}
    model = helper.make_model(made, producer_name="repq", producer_version=version("repq"), **versions)
    helper.set_model_props(model, about(graph))
    onnx.checker.check_model(model, full_check=True)
    return model


# A layer's inputs behind its first, and what follows it: operations, each with a constant operand.
Arithmetic = tuple[list[str], list[tuple[str, Tensor]]]


class OnnxGraph(Constants):
    """What operations write themselves to: nodes, constants, and who reads what."""

    def __init__(self, net: DeployedNet, form: Form) -> None:
        super().__init__(net, form)
        self.readers = {name: [node for node in net.nodes if name in node["inputs"]] for name in self.by_name}
        self.float_layers = [node["name"] for node in net.nodes if "weight" in node and self._is_slow_in_int8(node)]
        self.on_integers = sums_before_signs(net) | (set() if form.symmetric else self._floating_anyway())
        self.outputs = list(dict.fromkeys(leaves(net.graph["output"])))

    @functools.cached_property
    def sizes(self) -> dict[str, list[int]]:
        """Of every node's output for one image."""
        return self.net.sizes()

    def clipped(self, name: str) -> tuple[float, float] | None:
        """The limits of a node's activation function, if the codes of its quantizers can be clipped instead.

        That is the same: rounding keeps the order of values.
        """
        node, readers = self.by_name.get(name, {}), self.readers.get(name, ())
        if (
            self.form.symmetric
            or name in self.outputs
            or not readers
            or any(reader["op"] != "quantize" or reader["by_sign"] for reader in readers)
        ):
            return None
        return OPERATIONS[node["op"]].limits(node) if node else None

    def source(self, node: Node) -> str:
        """What a node's first input is called; an activation function that quantizers apply has no node."""
        name = node["inputs"][0]
        if node["name"] in self.on_integers:
            return f"{name}.integers"
        before = self.by_name.get(name, {})
        return self.source(before) if before and "weight" not in before and self.clipped(name) else name

    def quantize(self, node: Node) -> None:
        """Quantize, clip where codes are fewer than the type's, dequantize."""
        name, source = node["name"], self.source(node)
        step = self.net.stored[node["step"]].double().view(())
        moved = self._moved(node)
        zero_point = moved + (int(self.net.stored[node["zero_point"]]) if node["zero_point"] else 0)
        if node["by_sign"]:
            zero = self.constant(f"{name}.zero", 0)
            high, low = (self.constant(f"{name}.{key}", node[key] * step) for key in ("high", "low"))
            positive = self.add_node("GreaterOrEqual", [source, zero], f"{name}.positive")
            source = self.add_node("Where", [positive, high, low], f"{name}.sign")
        kind = np.int8 if self.form.symmetric else np.uint8
        grid = [self.constant(f"{name}.step", step), self.constant(f"{name}.zero_point", zero_point, kind)]
        ends = self._code_limits(node, step, zero_point)
        clips = not node["by_sign"] and ends != (INT8 if self.form.symmetric else UINT8)
        if clips and self.form.symmetric:  # of numbers, which readers of that form know
            limits = [
                self.constant(f"{name}.{key}", end * step) for key, end in zip(("low", "high"), ends, strict=True)
            ]
            source = self.add_node("Clip", [source, *limits], f"{name}.clipped")
        codes = self.add_node("QuantizeLinear", [source, *grid], f"{name}.codes", doc_string=codes_of(node))
        if clips and not self.form.symmetric:
            limits = [self.constant(f"{name}.{key}", end, kind) for key, end in zip(("low", "high"), ends, strict=True)]
            codes = self.add_node("Clip", [codes, *limits], f"{name}.clipped")
        summed = [reader["name"] in self.on_integers for reader in self.readers[name]]
        if any(summed):
            one = self.constant(f"{name}.one", 1)
            self.add_node("DequantizeLinear", [codes, one, grid[1]], f"{name}.integers")
        if not all(summed) or name in self.outputs:
            self.add_node("DequantizeLinear", [codes, *grid], name)

    def _code_limits(self, node: Node, step: Tensor, zero_point: int) -> tuple[float, float]:
        """The least and the greatest code: the quantizer's own, or of the activation function in front."""
        limits = self.clipped(node["inputs"][0]) or (-math.inf, math.inf)
        # In float32, as the executor rounds.
        low, high = (zero_point + torch.tensor(limit).div(step.float()).round().item() for limit in limits)
        moved = self._moved(node)
        return max(node["low"] + moved, low), min(node["high"] + moved, high)

    def conv(self, node: Node, op: str, more: dict[str, Any]) -> None:
        """Convolution with its bias, a batch norm's multiplier where one is left, and its activation."""
        if node["input_scale"]:
            raise ConfigError(f"The layer {node['name']} multiplies by XNOR-Net's K, which QDQ form has no place for.")
        name, source = node["name"], self.source(node)
        left, right, top, bottom = torch_padding(node["padding"])
        if node["pad_value"] and (left or right or top or bottom):
            pads = self.constant(f"{name}.pads", [0, 0, top, left, 0, 0, bottom, right], np.int64)
            pad = self.net.pad_code(node) if name in self.on_integers else node["pad_value"]
            value = self.constant(f"{name}.pad_value", pad)
            source = self.add_node("Pad", [source, pads, value], f"{name}.padded")
            left = right = top = bottom = 0
        geometry = {
            "kernel_shape": node["shape"][2:],
            "strides": pair(node["stride"]),
            "pads": [top, left, bottom, right],
            "group": node["groups"],
            **({"dilations": pair(node["dilation"])} if "dilation" in node else {}),
            **more,
        }
        activation = None if self.clipped(name) else ACTIVATIONS[node["activation"]]
        self._layer(node, op, source, activation, geometry)

    def linear(self, node: Node) -> None:
        """A classifier."""
        self._layer(node, "Gemm", self.source(node), None, {"transB": 1})

    def _layer(self, node: Node, op: str, source: str, activation: Activation | None, attributes: Any) -> None:
        name = node["name"]
        (weight, *bias), behind = self._on_integers(node) if name in self.on_integers else self._on_values(node)
        inputs = [self.turned(node, weight) if op == "ConvTranspose" else weight, *bias]
        last = name if activation is None else f"{name}.linear"
        output = self.add_node(op, [source, *inputs], f"{name}.sums" if behind else last, **attributes)
        shape = (-1, *[1] * (len(node["shape"]) - 2))
        for index, (kind, operand) in enumerate(behind):
            factor = self.constant(f"{name}.{kind.lower()}", operand.view(shape))
            target = last if index == len(behind) - 1 else f"{name}.scaled"
            output = self.add_node(kind, [output, factor], target)
        if activation is not None:
            activation.onnx_of(self, node, output)

    def _on_values(self, node: Node) -> Arithmetic:
        """Weights and biases of a layer whose sums runtimes may form of codes and scale in one kernel."""
        multiplier, bias = self.stored(node, "multiplier"), self.bias(node)
        folds = multiplier is None or bool((multiplier > 0).all())
        scale = None if multiplier is None or not folds else multiplier
        inputs = [self.weight(node, self.weight_step(node, scale))]
        if bias is not None and folds and not (self.form.float_biases or node["name"] in self.float_layers):
            inputs.append(self.bias_constant(node, bias, scale))
            bias = None
        behind = [("Mul", None if folds else multiplier), ("Add", bias)]
        return inputs, [(kind, operand) for kind, operand in behind if operand is not None]

    def _on_integers(self, node: Node) -> Arithmetic:
        """As the executor computes: weights and biases are codes, and what a sum is worth is multiplied behind it."""
        inputs = [self.weight(node, torch.ones(node["shape"][0], dtype=torch.float64))]
        held = {key: self.net.held(node, key) for key in ("summed_bias", "factor", "bias")}
        if held["summed_bias"] is not None:
            inputs.append(self.constant(f"{node['name']}.bias", held["summed_bias"]))
        behind = [("Mul", held["factor"]), ("Add", held["bias"])]
        return inputs, [(kind, operand) for kind, operand in behind if operand is not None]

    def _floating_anyway(self) -> set[str]:
        """Layers of codes that no kernel makes codes of, since a function that is no clip stands behind them.

        As numbers their sums would be rounded in the order in which they are formed; of integers they are exact, and
        what follows is the executor's own arithmetic.
        """
        layers = [self.by_name[name] for name in self.net.on_codes]
        activations = {node["name"]: ACTIVATIONS[node.get("activation", "none")] for node in layers}
        return {
            node["name"]
            for node in layers
            if activations[node["name"]] is not None
            and OPERATIONS[node["op"]].limits(node) is None
            and not node["input_scale"]
        }

    def _is_slow_in_int8(self, node: Node) -> bool:
        """Depthwise with a zero-point per channel, for which ONNX Runtime has no kernel but one channel at a time.

        With its bias behind the sums such a layer runs in floating point, 50 times as fast.
        """
        zero_points = self.stored(node, "weight_zero_point")
        mixed = zero_points is not None and zero_points.unique().numel() > 1
        return mixed and node.get("groups", 1) == node["shape"][0] > 1

    def _moved(self, node: Node) -> int:
        """What is added to codes of a quantizer to make them the form's type: uint8, or int8."""
        low, high = node["low"], node["high"]
        moved = 0 if low >= 0 or self.form.symmetric else 128
        least, most = INT8 if self.form.symmetric else UINT8
        if self.form.symmetric and (node["zero_point"] or high > most):
            why = "a zero-point" if node["zero_point"] else f"codes from {low} to {high}, and int8 ends at {most}"
            raise ConfigError(
                f"zero_points=none: the activations {node['name']} have {why}: train with quant.signed_codes=true, and "
                f"with steps alone (quant.act_method=lsq), or export with zero_points=auto."
            )
        if low + moved < least or high + moved > most:
            raise ConfigError(f"Codes from {low} to {high} are no 8 bits: ONNX has no type for them.")
        return moved
