"""What moves numbers and computes none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repq_cli.deploy.fixed_point import INT32_MAX, quantize_multiplier, rescaled, saturated
from repq_cli.deploy.integer_scales import Scaled, fine_scale
from repq_cli.deploy.operations.base import Constants, Node, Operation, Step, schema
from repq_cli.deploy.tracing import Call, Ref, RefusedError, form

if TYPE_CHECKING:
    from repq_cli.deploy.integer import IntegerNet
    from repq_cli.deploy.network import DeployedNet
    from repq_cli.deploy.onnx_graph import OnnxGraph


class Flatten(Operation):
    """To ``[N, C]``."""

    name = "flatten"
    keeps_codes = True

    def compute(self, net: DeployedNet, node: Node, x: Tensor) -> Tensor:
        return torch.flatten(x, 1)

    def integers(self, net: IntegerNet, node: Node, constants: Constants, x: Tensor) -> Tensor:
        return torch.flatten(x, 1)

    def onnx(self, graph: OnnxGraph, node: Node) -> None:
        # Not by Flatten, across which runtimes do not move a quantizer to the pool in front.
        shape = graph.constant(f"{node['name']}.shape", [0, -1], np.int64)
        graph.add_node("Reshape", [node["inputs"][0], shape], node["name"])


class PixelShuffle(Operation):
    """``[N, C s s, H, W]`` to ``[N, C, H s, W s]``."""

    name = "pixel_shuffle"
    keys = schema(scale=Step)

    def compute(self, net: DeployedNet, node: Node, x: Tensor) -> Tensor:
        return F.pixel_shuffle(x, node["scale"])

    def scales(self, node: Node, known: list[Scaled], net: IntegerNet) -> tuple[Constants, Scaled]:
        """Channels become pixels, and so have to have one scale."""
        (given,) = known
        bound = (given.scale * given.bound).max()
        scale = torch.tensor([fine_scale(bound.item(), net.next_steps(node["name"]))], dtype=torch.float64)
        largest = (bound.view(1) / scale).clamp(max=INT32_MAX)
        return {"multiplier": quantize_multiplier(given.scale / scale)}, Scaled(scale, largest)

    def integers(self, net: IntegerNet, node: Node, constants: Constants, x: Tensor) -> Tensor:
        return F.pixel_shuffle(saturated(rescaled(x, constants["multiplier"])), node["scale"])

    def onnx(self, graph: OnnxGraph, node: Node) -> None:
        graph.add_node("DepthToSpace", node["inputs"], node["name"], blocksize=node["scale"], mode="CRD")


class NearestUpsample(Operation):
    """Each pixel ``scale`` times in both directions."""

    name = "nearest_upsample"
    keys = schema(scale=Step)
    keeps_codes = True

    def compute(self, net: DeployedNet, node: Node, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=float(node["scale"]), mode="nearest")

    def integers(self, net: IntegerNet, node: Node, constants: Constants, x: Tensor) -> Tensor:
        return x.repeat_interleave(node["scale"], 2).repeat_interleave(node["scale"], 3)

    def onnx(self, graph: OnnxGraph, node: Node) -> None:
        scales = graph.constant(f"{node['name']}.scales", [1, 1, node["scale"], node["scale"]])
        where = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        graph.add_node("Resize", [node["inputs"][0], "", scales], node["name"], **where)


@form(nn.Identity)
def _nothing(call: Call, module: nn.Module, x: Ref) -> Ref:
    return x


@form(nn.Flatten)
def _flatten(call: Call, module: nn.Flatten, x: Ref) -> Ref:
    return call.emit("flatten", [x])


@form(nn.PixelShuffle)
def _pixel_shuffle(call: Call, module: nn.PixelShuffle, x: Ref) -> Ref:
    return call.emit("pixel_shuffle", [x], scale=module.upscale_factor)


@form(nn.Upsample)
def _upsample(call: Call, module: nn.Upsample, x: Ref) -> Ref:
    if module.mode != "nearest":
        raise RefusedError(f"The layer {call.path} interpolates by {module.mode}; only nearest has a deployed form.")
    return call.emit("nearest_upsample", [x], scale=int(module.scale_factor))  # type: ignore[arg-type]
