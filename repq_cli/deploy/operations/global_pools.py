"""Pooling of whole maps, or to maps of a size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repq_cli.deploy.operations.base import FORMAT_OF_ANY_NETWORK, Constants, Node, Operation, SameScale, Size, schema
from repq_cli.deploy.operations.pools import Mean
from repq_cli.deploy.tracing import Call, Ref, RefusedError, form

if TYPE_CHECKING:
    from repq_cli.deploy.integer import IntegerNet
    from repq_cli.deploy.network import DeployedNet
    from repq_cli.deploy.onnx_graph import OnnxGraph


class GlobalMaxPool(SameScale):
    """The largest number of every channel: ``[N, C, 1, 1]``."""

    name = "global_max_pool"
    keeps_codes = True

    def format(self, node: Node) -> int:
        return FORMAT_OF_ANY_NETWORK

    def compute(self, net: DeployedNet, node: Node, x: Tensor) -> Tensor:
        return x.amax((2, 3), keepdim=True)

    def integers(self, net: IntegerNet, node: Node, constants: Constants, x: Tensor) -> Tensor:
        return x.amax((2, 3), keepdim=True)

    def onnx(self, graph: OnnxGraph, node: Node) -> None:
        graph.add_node("GlobalMaxPool", node["inputs"], node["name"])


class GlobalAveragePool(Mean):
    """The mean of every channel: ``[N, C, 1, 1]``."""

    name = "global_average_pool"

    def compute(self, net: DeployedNet, node: Node, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, 1)

    def size(self, net: DeployedNet, node: Node, *given: list[int]) -> list[int]:
        return [*given[0][:2], 1, 1] if len(given[0]) == 4 else net.size_by_torch(node, *given)

    def integers(self, net: IntegerNet, node: Node, constants: Constants, x: Tensor) -> Tensor:
        return self.divided(x.long().sum((2, 3), keepdim=True), x.shape[2] * x.shape[3], constants)

    def onnx(self, graph: OnnxGraph, node: Node) -> None:
        graph.add_node("GlobalAveragePool", node["inputs"], node["name"])


class AdaptivePool(Operation):
    """Of equal windows, so that the map becomes one of ``size``, which divides it."""

    keys = schema(size=tuple[Size, Size])

    def format(self, node: Node) -> int:
        return FORMAT_OF_ANY_NETWORK

    def window(self, node: Node, sizes: list[int]) -> dict[str, Any]:
        """As ONNX says it."""
        rows, columns = (have // get for have, get in zip(sizes[2:], node["size"], strict=True))
        return {"kernel_shape": [rows, columns], "strides": [rows, columns]}


class AdaptiveAveragePool(AdaptivePool, Mean):
    """The means."""

    name = "adaptive_average_pool"

    def compute(self, net: DeployedNet, node: Node, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(_fitting(node, x), node["size"])

    def integers(self, net: IntegerNet, node: Node, constants: Constants, x: Tensor) -> Tensor:
        rows, columns = (have // get for have, get in zip(x.shape[2:], node["size"], strict=True))
        total = F.avg_pool2d(x.double(), (rows, columns), divisor_override=1).long()
        return self.divided(total, rows * columns, constants)

    def onnx(self, graph: OnnxGraph, node: Node) -> None:
        (source,) = node["inputs"]
        graph.add_node("AveragePool", [source], node["name"], **self.window(node, graph.sizes[source]))


class AdaptiveMaxPool(AdaptivePool, SameScale):
    """The largest numbers."""

    name = "adaptive_max_pool"
    keeps_codes = True

    def compute(self, net: DeployedNet, node: Node, x: Tensor) -> Tensor:
        return F.adaptive_max_pool2d(_fitting(node, x), node["size"])

    def integers(self, net: IntegerNet, node: Node, constants: Constants, x: Tensor) -> Tensor:
        return self.compute(net.deployed, node, x.double()).to(torch.int32)

    def onnx(self, graph: OnnxGraph, node: Node) -> None:
        (source,) = node["inputs"]
        graph.add_node("MaxPool", [source], node["name"], **self.window(node, graph.sizes[source]))


def _fitting(node: Node, x: Tensor) -> Tensor:
    if any(have % get for have, get in zip(x.shape[2:], node["size"], strict=True)):
        raise ValueError(f"{node['name']} pools {list(x.shape[2:])} to {node['size']}, which is no divisor of it")
    return x


@form(nn.AdaptiveAvgPool2d)
def _average_layer(call: Call, module: nn.AdaptiveAvgPool2d, x: Ref) -> Ref:
    return _average(call, x, module.output_size)


@form(F.adaptive_avg_pool2d)
def _average(call: Call, x: Ref, output_size: Any) -> Ref:
    return _adaptive(call, x, output_size, "global_average_pool", "adaptive_average_pool")


@form(nn.AdaptiveMaxPool2d)
def _max_layer(call: Call, module: nn.AdaptiveMaxPool2d, x: Ref) -> Ref:
    return _max(call, x, module.output_size, module.return_indices)


@form(F.adaptive_max_pool2d)
def _max(call: Call, x: Ref, output_size: Any, return_indices: bool = False) -> Ref:
    if return_indices:
        raise RefusedError(f"The max pool at {call.where} gives indices, which have no deployed form.")
    return _adaptive(call, x, output_size, "global_max_pool", "adaptive_max_pool")


def _adaptive(call: Call, x: Ref, output_size: Any, whole: str, parts: str) -> Ref:
    given = [output_size] * 2 if isinstance(output_size, int) or output_size is None else list(output_size)
    if given == [1, 1]:
        return call.emit(whole, [x])
    have = call.sizes(x)[2:]
    size = [old if new is None else int(new) for old, new in zip(have, given, strict=True)]
    if any(old % new for old, new in zip(have, size, strict=True)):
        raise RefusedError(
            f"The layer {call.where} pools maps of {have[0]}x{have[1]} to {size[0]}x{size[1]}; sizes that divide them "
            f"have a deployed form."
        )
    return x if size == list(have) else call.emit(parts, [x], size=size)


@form(torch.mean, "mean")
def _mean(call: Call, x: Ref, dim: Any = None, keepdim: bool = False) -> Ref:
    return _reduced(call, x, dim, keepdim, "global_average_pool")


@form(torch.amax, "amax")
def _largest(call: Call, x: Ref, dim: Any = (), keepdim: bool = False) -> Ref:
    return _reduced(call, x, dim, keepdim, "global_max_pool")


def _reduced(call: Call, x: Ref, dim: Any, keepdim: bool, op: str) -> Ref:
    axes = sorted(axis % 4 for axis in dim) if isinstance(dim, list | tuple) else []
    if axes != [2, 3]:
        raise RefusedError(f"What {call.kind} at {call.where} is over, {dim}, has no deployed form; (2, 3) has.")
    pooled = call.emit(op, [x])
    return pooled if keepdim else call.emit("flatten", [pooled])
