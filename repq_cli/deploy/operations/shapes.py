"""What moves numbers and computes none."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repq_cli.bounds import Range
from repq_cli.deploy.fixed_point import INT32_MAX, quantize_multiplier, rescaled, saturated
from repq_cli.deploy.integer_scales import Scaled, fine_scale, one_scale
from repq_cli.deploy.operations.base import (
    FORMAT_OF_ANY_NETWORK,
    Constants,
    Node,
    Operation,
    Size,
    Step,
    schema,
)
from repq_cli.deploy.tracing import Call, Ref, RefusedError, form

if TYPE_CHECKING:
    from repq_cli.deploy.integer import IntegerNet
    from repq_cli.deploy.network import DeployedNet
    from repq_cli.deploy.onnx_graph import OnnxGraph


class Move(Operation):
    """The same numbers elsewhere: what ``compute`` does to numbers it does to integers."""

    keeps_codes = True

    def format(self, node: Node) -> int:
        return FORMAT_OF_ANY_NETWORK

    def scales(self, node: Node, known: list[Scaled], net: IntegerNet) -> tuple[Constants, Scaled]:
        """Where channels have scales of their own, these move with them; else all get one."""
        (given,) = known
        moved = None if len(given.scale) == 1 else self.channels(node, net.sizes[node["inputs"][0]])
        if moved is not None:
            scale, bound = given.scale, given.bound.expand(len(given.scale))
            return {"multiplier": None}, Scaled(scale[moved], bound[moved])
        multiplier, out = one_scale(given, net.next_steps(node["name"]))
        return {"multiplier": multiplier}, out

    def channels(self, node: Node, sizes: list[int]) -> Tensor | None:
        """From which channel each one comes; None where that is not one."""
        return None

    def integers(self, net: IntegerNet, node: Node, constants: Constants, x: Tensor) -> Tensor:
        if constants["multiplier"] is not None:
            x = saturated(rescaled(x, constants["multiplier"]))
        return self.compute(net.deployed, node, x)


class Flatten(Move):
    """To ``[N, C H W]``."""

    name = "flatten"

    def format(self, node: Node) -> int:
        return Operation.format(self, node)

    def channels(self, node: Node, sizes: list[int]) -> Tensor:
        return torch.arange(sizes[1]).repeat_interleave(math.prod(sizes[2:]))

    def compute(self, net: DeployedNet, node: Node, x: Tensor) -> Tensor:
        return torch.flatten(x, 1)

    def size(self, net: DeployedNet, node: Node, *given: list[int]) -> list[int]:
        return [given[0][0], math.prod(given[0][1:])]

    def onnx(self, graph: OnnxGraph, node: Node) -> None:
        # Not by Flatten, across which runtimes do not move a quantizer to the pool in front.
        shape = graph.constant(f"{node['name']}.shape", [0, -1], np.int64)
        graph.add_node("Reshape", [node["inputs"][0], shape], node["name"])


class Reshape(Move):
    """To ``[N, *shape]``."""

    name = "reshape"
    keys = schema(shape=list[Size])

    def problems(self, node: Node, known: Mapping[str, Node], tensors: Mapping[str, Tensor]) -> Iterator[str]:
        if not 1 <= len(node["shape"]) <= 5:
            yield "has a shape of other than 1 to 5 sizes"

    def channels(self, node: Node, sizes: list[int]) -> Tensor | None:
        each = torch.arange(sizes[1]).view(-1, *[1] * (len(sizes) - 2)).expand(sizes[1:])
        rows = each.reshape(node["shape"][0], -1)
        return rows[:, 0] if bool((rows == rows[:, :1]).all()) else None

    def compute(self, net: DeployedNet, node: Node, x: Tensor) -> Tensor:
        return x.reshape(len(x), *node["shape"])

    def onnx(self, graph: OnnxGraph, node: Node) -> None:
        shape = graph.constant(f"{node['name']}.shape", [0, *node["shape"]], np.int64)
        graph.add_node("Reshape", [node["inputs"][0], shape], node["name"])


class Permute(Move):
    """Axes in another order: ``order`` says which becomes the first, the second, … behind N."""

    name = "permute"
    keys = schema(order=list[Annotated[int, Range(1, 5)]])

    def problems(self, node: Node, known: Mapping[str, Node], tensors: Mapping[str, Tensor]) -> Iterator[str]:
        if sorted(node["order"]) != list(range(1, len(node["order"]) + 1)):
            yield "has an order that is none"

    def compute(self, net: DeployedNet, node: Node, x: Tensor) -> Tensor:
        return x.permute(0, *node["order"])

    def onnx(self, graph: OnnxGraph, node: Node) -> None:
        graph.add_node("Transpose", node["inputs"], node["name"], perm=[0, *node["order"]])


class ChannelShuffle(Move):
    """Channels of so many groups, the first of each group, then the second of each."""

    name = "channel_shuffle"
    keys = schema(groups=Size)

    def channels(self, node: Node, sizes: list[int]) -> Tensor:
        return torch.arange(sizes[1]).view(node["groups"], -1).T.flatten()

    def compute(self, net: DeployedNet, node: Node, x: Tensor) -> Tensor:
        return x.unflatten(1, (node["groups"], -1)).transpose(1, 2).flatten(1, 2)

    def onnx(self, graph: OnnxGraph, node: Node) -> None:
        """As runtimes take the picking of channels, whatever the image's size."""
        (source,), name = node["inputs"], node["name"]
        order = graph.constant(f"{name}.order", self.channels(node, graph.sizes[source]), np.int64)
        graph.add_node("Gather", [source, order], name, axis=1)


class PixelShuffle(Operation):
    """``[N, C s s, H, W]`` to ``[N, C, H s, W s]``."""

    name = "pixel_shuffle"
    keys = schema(scale=Step)

    def compute(self, net: DeployedNet, node: Node, x: Tensor) -> Tensor:
        return F.pixel_shuffle(x, node["scale"])

    def size(self, net: DeployedNet, node: Node, *given: list[int]) -> list[int]:
        scale = node["scale"]
        if len(given[0]) != 4 or given[0][1] % scale**2:
            return net.size_by_torch(node, *given)
        images, channels, rows, columns = given[0]
        return [images, channels // scale**2, rows * scale, columns * scale]

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


class PixelUnshuffle(Move):
    """``[N, C, H s, W s]`` to ``[N, C s s, H, W]``."""

    name = "pixel_unshuffle"
    keys = schema(scale=Step)

    def channels(self, node: Node, sizes: list[int]) -> Tensor:
        return torch.arange(sizes[1]).repeat_interleave(node["scale"] ** 2)

    def compute(self, net: DeployedNet, node: Node, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(x, node["scale"])

    def onnx(self, graph: OnnxGraph, node: Node) -> None:
        """SpaceToDepth counts channels last: they are put in torch's order behind it."""
        (source,), name, scale = node["inputs"], node["name"], node["scale"]
        deep = graph.add_node("SpaceToDepth", [source], f"{name}.deep", blocksize=scale)
        order = torch.arange(graph.sizes[name][1]).view(scale * scale, -1).T.flatten()
        graph.add_node("Gather", [deep, graph.constant(f"{name}.order", order, np.int64)], name, axis=1)


@form(nn.Identity, nn.Dropout, nn.Dropout2d, nn.AlphaDropout)
def _nothing(call: Call, module: nn.Module, x: Ref) -> Ref:
    return x


@form(F.dropout, F.dropout2d, "contiguous", "clone", "detach", torch.clone, "torchvision.stochastic_depth")
def _nothing_either(call: Call, x: Ref, *unused: object, **named: object) -> Ref:
    return x


@form("size")
def _size(call: Call, x: Ref, dim: int | None = None) -> Any:
    return call.sizes(x) if dim is None else call.sizes(x)[dim]


@form(getattr)
def _attribute(call: Call, x: Ref, name: str) -> Any:
    if name not in ("shape", "ndim"):
        raise RefusedError(f"A tensor's {name}, which {call.where} asks for, is not known beforehand; its shape is.")
    return call.sizes(x) if name == "shape" else len(call.sizes(x))


@form("dim")
def _dim(call: Call, x: Ref) -> int:
    return len(call.sizes(x))


@form(nn.Flatten)
def _flatten_layer(call: Call, module: nn.Flatten, x: Ref) -> Ref:
    return _flatten(call, x, module.start_dim, module.end_dim)


@form(torch.flatten, "flatten")
def _flatten(call: Call, x: Ref, start_dim: int = 0, end_dim: int = -1) -> Ref:
    return call.emit("flatten", [x]) if (start_dim, end_dim) == (1, -1) else _reshape(call, x)


@form(nn.Unflatten)
def _unflatten_layer(call: Call, module: nn.Unflatten, x: Ref) -> Ref:
    return _reshape(call, x)


@form("view", "reshape", "unflatten", "squeeze", "unsqueeze", torch.reshape, torch.squeeze, torch.unsqueeze)
def _reshape(call: Call, x: Ref, *unused: object, **named: object) -> Ref:
    have, get = call.sizes(x), call.own_sizes()
    if not 1 < len(get) <= 6 or get[0] != have[0]:
        raise RefusedError(f"At {call.where} {list(have)} becomes {list(get)}, in which images are no first axis.")
    if have == get:
        return x
    return call.emit("flatten", [x]) if len(get) == 2 else call.emit("reshape", [x], shape=list(get[1:]))


@form(torch.permute, "permute")
def _permute(call: Call, x: Ref, *dims: Any) -> Ref:
    dims = tuple(dims[0]) if len(dims) == 1 else dims
    order = [dim % len(dims) for dim in dims]
    if order[0] != 0:
        raise RefusedError(f"At {call.where} the images' axis moves, which has no deployed form.")
    return call.emit("permute", [x], order=order[1:])


@form(torch.transpose, "transpose", torch.swapaxes)
def _transpose(call: Call, x: Ref, dim0: int, dim1: int) -> Ref:
    order = list(range(len(call.sizes(x))))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return _permute(call, x, *order)


@form(nn.ChannelShuffle)
def _channel_shuffle_layer(call: Call, module: nn.ChannelShuffle, x: Ref) -> Ref:
    return call.emit("channel_shuffle", [x], groups=module.groups)


@form(F.channel_shuffle)
def _channel_shuffle(call: Call, x: Ref, groups: int) -> Ref:
    return call.emit("channel_shuffle", [x], groups=groups)


@form(nn.PixelShuffle)
def _pixel_shuffle_layer(call: Call, module: nn.PixelShuffle, x: Ref) -> Ref:
    return call.emit("pixel_shuffle", [x], scale=module.upscale_factor)


@form(F.pixel_shuffle)
def _pixel_shuffle(call: Call, x: Ref, upscale_factor: int) -> Ref:
    return call.emit("pixel_shuffle", [x], scale=upscale_factor)


@form(nn.PixelUnshuffle)
def _pixel_unshuffle_layer(call: Call, module: nn.PixelUnshuffle, x: Ref) -> Ref:
    return call.emit("pixel_unshuffle", [x], scale=module.downscale_factor)


@form(F.pixel_unshuffle)
def _pixel_unshuffle(call: Call, x: Ref, downscale_factor: int) -> Ref:
    return call.emit("pixel_unshuffle", [x], scale=downscale_factor)
