"""Pooling."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repq_cli.deploy.fixed_point import INT32_MAX
from repq_cli.deploy.integer_scales import Scaled
from repq_cli.deploy.operations.base import Constants, Node, Operation, Places, schema
from repq_cli.deploy.tracing import Call, Ref, RefusedError, form

if TYPE_CHECKING:
    from repq_cli.deploy.integer import IntegerNet
    from repq_cli.deploy.network import DeployedNet
    from repq_cli.deploy.onnx_graph import OnnxGraph


class GlobalAveragePool(Operation):
    """The mean of every channel: ``[N, C, 1, 1]``."""

    name = "global_average_pool"

    def compute(self, net: DeployedNet, node: Node, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, 1)

    def scales(self, node: Node, known: list[Scaled], net: IntegerNet) -> tuple[Constants, Scaled]:
        (given,) = known
        left = int((INT32_MAX / given.bound.max()).log2().floor())
        return {"left": left}, Scaled(given.scale * 2.0**-left, given.bound * 2.0**left)

    def integers(self, net: IntegerNet, node: Node, constants: Constants, x: Tensor) -> Tensor:
        total = x.long().sum((2, 3), keepdim=True) << constants["left"]
        count = x.shape[2] * x.shape[3]
        rounded = torch.div(2 * total + count * total.sign(), 2 * count, rounding_mode="trunc")
        return rounded.to(torch.int32)

    def onnx(self, graph: OnnxGraph, node: Node) -> None:
        graph.add_node("GlobalAveragePool", node["inputs"], node["name"])


class MaxPool(Operation):
    """The largest number of every window."""

    name = "max_pool"
    keys = schema(size=Places, stride=Places, padding=Places)
    keeps_codes = True

    def compute(self, net: DeployedNet, node: Node, x: Tensor) -> Tensor:
        return F.max_pool2d(x, node["size"], node["stride"], node["padding"])

    def integers(self, net: IntegerNet, node: Node, constants: Constants, x: Tensor) -> Tensor:
        # Padding never wins: it is below every integer.
        padded = F.pad(x, [node["padding"]] * 4, value=-INT32_MAX)
        windows = padded.unfold(2, node["size"], node["stride"]).unfold(3, node["size"], node["stride"])
        return windows.amax((-1, -2))

    def onnx(self, graph: OnnxGraph, node: Node) -> None:
        geometry = {"kernel_shape": [node["size"]] * 2, "strides": [node["stride"]] * 2, "pads": [node["padding"]] * 4}
        graph.add_node("MaxPool", node["inputs"], node["name"], **geometry)


@form(nn.AdaptiveAvgPool2d)
def _adaptive_average_pool(call: Call, module: nn.AdaptiveAvgPool2d, x: Ref) -> Ref:
    if module.output_size not in (1, (1, 1)):
        raise RefusedError(
            f"The layer {call.path} pools to {module.output_size}; only global pooling has a deployed form."
        )
    return call.emit("global_average_pool", [x])


@form(nn.MaxPool2d)
def _max_pool(call: Call, module: nn.MaxPool2d, x: Ref) -> Ref:
    return call.emit("max_pool", [x], size=module.kernel_size, stride=module.stride, padding=module.padding)
