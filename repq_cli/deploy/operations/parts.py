"""Parts of a tensor, and more around it."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repq_cli.bounds import Range
from repq_cli.deploy.fixed_point import INT32_MAX, per_channel, saturated
from repq_cli.deploy.integer_scales import Scaled
from repq_cli.deploy.operations.base import Axis, Constants, Node, Place, Size, Step, schema
from repq_cli.deploy.operations.shapes import Move
from repq_cli.deploy.tracing import Call, Ref, RefusedError, form

if TYPE_CHECKING:
    from repq_cli.deploy.integer import IntegerNet
    from repq_cli.deploy.network import DeployedNet
    from repq_cli.deploy.onnx_graph import OnnxGraph


class Slice(Move):
    """From ``start`` to before ``end`` (null: to the end) along an axis, every ``step``."""

    name = "slice"
    keys = schema(axis=Axis, start=Annotated[int, Range(0, 2**20)], end=Size | None, step=Step)

    def channels(self, node: Node, sizes: list[int]) -> Tensor:
        every = torch.arange(sizes[1])
        return every[node["start"] : node["end"] : node["step"]] if node["axis"] == 1 else every

    def compute(self, net: DeployedNet, node: Node, x: Tensor) -> Tensor:
        places = [slice(None)] * x.dim()
        places[node["axis"]] = slice(node["start"], node["end"], node["step"])
        found = x[tuple(places)]
        if found.numel() == 0:
            raise ValueError(f"{node['name']} takes nothing of {list(x.shape)}")
        return found

    def onnx(self, graph: OnnxGraph, node: Node) -> None:
        name, end = node["name"], 2**31 - 1 if node["end"] is None else node["end"]
        values = {"start": node["start"], "end": end, "axis": node["axis"], "step": node["step"]}
        names = [graph.constant(f"{name}.{key}", [value], np.int64) for key, value in values.items()]
        graph.add_node("Slice", [node["inputs"][0], *names], name)


class Pad(Move):
    """More rows and columns around; ``pads``: left, right, top, bottom; ``value``: of a constant."""

    name = "pad"
    keys = schema(pads=tuple[Place, Place, Place, Place], mode=Literal["constant", "reflect", "replicate"], value=float)

    def scales(self, node: Node, known: list[Scaled], net: IntegerNet) -> tuple[Constants, Scaled]:
        """The constant is the nearest integer, with which codes that it is none of are no codes."""
        (given,), value = known, node["value"] if node["mode"] == "constant" else 0
        constant = (value / given.scale).round()
        bound = torch.maximum(given.bound.expand(len(constant)), constant.abs()).clamp(max=INT32_MAX)
        return {"value": constant.long()}, given._replace(bound=bound, codes=given.codes and value == 0)

    def channels(self, node: Node, sizes: list[int]) -> Tensor:
        return torch.arange(sizes[1])

    def compute(self, net: DeployedNet, node: Node, x: Tensor) -> Tensor:
        if node["mode"] == "constant":
            return F.pad(x, node["pads"], value=node["value"])
        return F.pad(x, node["pads"], node["mode"])

    def integers(self, net: IntegerNet, node: Node, constants: Constants, x: Tensor) -> Tensor:
        if node["mode"] != "constant":
            return F.pad(x.double(), node["pads"], node["mode"]).to(torch.int32)  # which holds every int32
        value = per_channel(constants["value"], x)
        return saturated(F.pad(x - value, node["pads"]) + value)

    def onnx(self, graph: OnnxGraph, node: Node) -> None:
        (left, right, top, bottom), name = node["pads"], node["name"]
        inputs = [node["inputs"][0], graph.constant(f"{name}.pads", [0, 0, top, left, 0, 0, bottom, right], np.int64)]
        mode = "edge" if node["mode"] == "replicate" else node["mode"]
        value = [graph.constant(f"{name}.value", node["value"])] if mode == "constant" else []
        graph.add_node("Pad", [*inputs, *value], name, mode=mode)


@form(operator.getitem)
def _getitem(call: Call, x: Any, index: Any) -> Any:
    """Of a shape or of several tensors one; of a tensor a part."""
    if not isinstance(x, Ref):
        return x[index]
    indices = list(index) if isinstance(index, tuple | list) else [index]
    have = call.sizes(x)
    if ... in indices:
        place = indices.index(...)
        indices[place : place + 1] = [slice(None)] * (len(have) - len(indices) + 1)
    if not all(isinstance(part, slice) for part in indices) or indices[0] != slice(None):
        raise RefusedError(
            f"The part {index} at {call.where} has no deployed form; slices of channels and pixels have."
        )
    for axis, part in enumerate(indices):
        if part != slice(None):
            start, end, step = part.indices(have[axis])
            x = call.emit("slice", [x], axis=axis, start=start, end=end, step=step)
    return x


@form(torch.chunk, torch.split, torch.tensor_split, "chunk", "split", "tensor_split")
def _split(call: Call, x: Ref, *unused: object, dim: int = 0, **named: object) -> list[Ref]:
    """As many parts as it gives, of their sizes."""
    have, parts = call.sizes(x), call.own_sizes()
    (axis,) = [axis for axis in range(len(have)) if any(part[axis] != have[axis] for part in parts)] or [1]
    if axis not in (1, 2, 3):
        raise RefusedError(f"{call.kind} at {call.where} splits the images, which has no deployed form.")
    found, start = [], 0
    for part in parts:
        end = start + part[axis]
        found.append(call.emit("slice", [x], axis=axis, start=start, end=end, step=1))
        start = end
    return found


@form(torch.narrow, "narrow")
def _narrow(call: Call, x: Ref, dim: int, start: int, length: int) -> Ref:
    return call.emit("slice", [x], axis=call.axis(x, dim), start=start, end=start + length, step=1)


@form(F.pad)
def _pad(call: Call, x: Ref, pad: Any, mode: str = "constant", value: float | None = None) -> Ref:
    pads = [*pad, 0, 0][:4] if len(pad) == 2 else list(pad)
    if len(pads) != 4 or min(pads) < 0 or mode not in ("constant", "reflect", "replicate"):
        raise RefusedError(
            f"The padding {tuple(pad)}, {mode}, at {call.where} has no deployed form; that of rows and columns has, by "
            f"a constant, reflect and replicate."
        )
    if not any(pads):
        return x
    return call.emit("pad", [x], pads=pads, mode=mode, value=float(value or 0))


@form(nn.ZeroPad2d, nn.ConstantPad2d)
def _constant_pad(call: Call, module: nn.ConstantPad2d, x: Ref) -> Ref:
    return _pad(call, x, module.padding, "constant", module.value)


@form(nn.ReflectionPad2d)
def _reflection_pad(call: Call, module: nn.ReflectionPad2d, x: Ref) -> Ref:
    return _pad(call, x, module.padding, "reflect")


@form(nn.ReplicationPad2d)
def _replication_pad(call: Call, module: nn.ReplicationPad2d, x: Ref) -> Ref:
    return _pad(call, x, module.padding, "replicate")
