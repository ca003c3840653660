"""Maps of another size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repq_cli.bounds import Range
from repq_cli.deploy.fixed_point import rounding_shift
from repq_cli.deploy.integer_scales import Scaled, with_room
from repq_cli.deploy.operations.base import (
    FORMAT_OF_ANY_NETWORK,
    Constants,
    Node,
    Operation,
    SameScale,
    Size,
    Step,
    schema,
)
from repq_cli.deploy.tracing import Call, Ref, RefusedError, form

if TYPE_CHECKING:
    from repq_cli.deploy.integer import IntegerNet
    from repq_cli.deploy.network import DeployedNet
    from repq_cli.deploy.onnx_graph import OnnxGraph

SHARES = 11  # bits of a row's share in a mean of two

Factor = Annotated[float, Range(2.0**-8, 256)]


class NearestUpsample(SameScale):
    """Each pixel ``scale`` times in both directions."""

    name = "nearest_upsample"
    keys = schema(scale=Step)
    keeps_codes = True

    def compute(self, net: DeployedNet, node: Node, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=float(node["scale"]), mode="nearest")

    def size(self, net: DeployedNet, node: Node, *given: list[int]) -> list[int]:
        if len(given[0]) != 4:
            return net.size_by_torch(node, *given)
        return [*given[0][:2], *(extent * node["scale"] for extent in given[0][2:])]

    def integers(self, net: IntegerNet, node: Node, constants: Constants, x: Tensor) -> Tensor:
        return x.repeat_interleave(node["scale"], 2).repeat_interleave(node["scale"], 3)

    def onnx(self, graph: OnnxGraph, node: Node) -> None:
        scales = graph.constant(f"{node['name']}.scales", [1, 1, node["scale"], node["scale"]])
        where = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        graph.add_node("Resize", [node["inputs"][0], "", scales], node["name"], **where)


class Resize(Operation):
    """The nearest pixel, or the mean of the four around; to ``size``, or ``scale`` times as many rows and columns."""

    name = "resize"
    keys = schema(
        mode=Literal["nearest", "bilinear"],
        size=tuple[Size, Size] | None,
        scale=tuple[Factor, Factor] | None,
        align_corners=bool,
    )

    def format(self, node: Node) -> int:
        return FORMAT_OF_ANY_NETWORK

    def problems(self, node: Node, known: Mapping[str, Node], tensors: Mapping[str, Tensor]) -> Iterator[str]:
        if (node["size"] is None) == (node["scale"] is None):
            yield "has a size and a scale, or none of them"
        if node["align_corners"] and node["mode"] == "nearest":
            yield "aligns corners, and takes the nearest pixel"

    def compute(self, net: DeployedNet, node: Node, x: Tensor) -> Tensor:
        corners = node["align_corners"] if node["mode"] == "bilinear" else None
        return F.interpolate(x, node["size"], node["scale"], node["mode"], corners)

    def scales(self, node: Node, known: list[Scaled], net: IntegerNet) -> tuple[Constants, Scaled]:
        if node["mode"] == "nearest":
            return {}, known[0]
        left, out = with_room(known[0])
        return {"left": left}, out

    def integers(self, net: IntegerNet, node: Node, constants: Constants, x: Tensor) -> Tensor:
        """Where each output pixel looks follows from what resizing makes of row and column numbers."""
        sizes = x.shape[2:]
        ramps = torch.stack(torch.meshgrid(*(torch.arange(size).double() for size in sizes), indexing="ij"))
        rows, columns = self.compute(net.deployed, node, ramps.unsqueeze(0))[0]
        if node["mode"] == "nearest":
            return x[:, :, rows[:, 0].long()][..., columns[0].long()]
        y, shift = x.long() << constants["left"], 0
        for axis, places in ((2, rows[:, 0]), (3, columns[0])):
            before = places.long()
            after = (before + 1).clamp(max=sizes[axis - 2] - 1)
            share = ((places - before) * 2**SHARES).round().long().view([-1, 1][: 4 - axis])
            y = y.index_select(axis, before) * (2**SHARES - share) + y.index_select(axis, after) * share
            shift += SHARES
        return rounding_shift(y, torch.tensor(shift)).to(torch.int32)

    def onnx(self, graph: OnnxGraph, node: Node) -> None:
        (source,), name = node["inputs"], node["name"]
        corners = "align_corners" if node["align_corners"] else "half_pixel"
        where = {"mode": "linear", "coordinate_transformation_mode": corners}
        if node["mode"] == "nearest":
            where = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        if node["scale"] is not None:
            inputs = [source, "", graph.constant(f"{name}.scales", [1, 1, *node["scale"]])]
        else:
            shape = graph.add_node("Shape", [source], f"{name}.shape", start=0, end=2)
            size = graph.constant(f"{name}.size", node["size"], np.int64)
            inputs = [source, "", "", graph.add_node("Concat", [shape, size], f"{name}.sizes", axis=0)]
        graph.add_node("Resize", inputs, name, **where)


@form(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)
def _upsample(call: Call, module: nn.Upsample, x: Ref) -> Ref:
    return _interpolate(call, x, module.size, module.scale_factor, module.mode, module.align_corners)


@form(F.interpolate)
def _interpolate(
    call: Call,
    x: Ref,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Ref:
    if mode not in ("nearest", "bilinear") or antialias:
        raise RefusedError(
            f"The layer {call.where} interpolates by {mode}{' with antialias' * antialias}; nearest and bilinear have "
            f"a deployed form."
        )
    factors = [scale_factor] * 2 if isinstance(scale_factor, int | float) else scale_factor
    is_whole = factors is not None and factors[0] == factors[1] == int(factors[0])
    if mode == "nearest" and is_whole:
        return call.emit("nearest_upsample", [x], scale=int(factors[0]))
    if size is not None or recompute_scale_factor:
        size, factors = list(call.own_sizes()[2:]), None
    scale = None if factors is None else [float(factor) for factor in factors]
    return call.emit("resize", [x], mode=mode, size=size, scale=scale, align_corners=bool(align_corners))
