"""Pooling: the mean or the largest number of windows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repq_cli.bounds import Range
from repq_cli.deploy.integer_scales import Scaled, with_room
from repq_cli.deploy.operations.base import (
    FORMAT,
    FORMAT_OF_ANY_NETWORK,
    Constants,
    Node,
    Places,
    SameScale,
    Steps,
    schema,
)
from repq_cli.deploy.tracing import Call, Ref, RefusedError, form, plain
from repq_cli.quant.windows import pair, places

if TYPE_CHECKING:
    from repq_cli.deploy.integer import IntegerNet
    from repq_cli.deploy.network import DeployedNet
    from repq_cli.deploy.onnx_graph import OnnxGraph


def geometry(node: Node, **more: Any) -> dict[str, Any]:
    """Windows as ONNX says them."""
    about = {"kernel_shape": pair(node["size"]), "strides": pair(node["stride"]), "pads": [*pair(node["padding"])] * 2}
    return {**about, **({"ceil_mode": 1} if node.get("ceil_mode") else {}), **more}


class MaxPool(SameScale):
    """The largest number of every window."""

    name = "max_pool"
    keys = schema(size=Places, stride=Places, padding=Places)
    others = schema(dilation=Steps, ceil_mode=bool)
    keeps_codes = True

    def format(self, node: Node) -> int:
        spans = [node[key] for key in ("size", "stride", "padding")]
        is_old = all(isinstance(span, int) for span in spans) and not {"dilation", "ceil_mode"} & set(node)
        return FORMAT if is_old else FORMAT_OF_ANY_NETWORK

    def compute(self, net: DeployedNet, node: Node, x: Tensor) -> Tensor:
        window = node["size"], node["stride"], node["padding"], node.get("dilation", 1)
        return F.max_pool2d(x, *window, ceil_mode=node.get("ceil_mode", False))

    def size(self, net: DeployedNet, node: Node, *given: list[int]) -> list[int]:
        (images, channels, *extents), sizes, padding = given[0], pair(node["size"]), pair(node["padding"])
        usual = not node.get("ceil_mode") and all(2 * more <= size for size, more in zip(sizes, padding, strict=True))
        window = sizes, node["stride"], node.get("dilation", 1), [2 * more for more in padding]
        if usual and min(pair(node["stride"])) > 0 and (found := places(extents, *window)):
            return [images, channels, *found]
        return net.size_by_torch(node, *given)

    def integers(self, net: IntegerNet, node: Node, constants: Constants, x: Tensor) -> Tensor:
        return self.compute(net.deployed, node, x.double()).to(torch.int32)  # which holds every int32

    def onnx(self, graph: OnnxGraph, node: Node) -> None:
        dilations = {"dilations": pair(node["dilation"])} if "dilation" in node else {}
        graph.add_node("MaxPool", node["inputs"], node["name"], **geometry(node, **dilations))


class Mean(SameScale):
    """A mean: integers get room to the left, are summed, and divided with halves away from zero."""

    def scales(self, node: Node, known: list[Scaled], net: IntegerNet) -> tuple[Constants, Scaled]:
        left, out = with_room(known[0])
        return {"left": left}, out

    def divided(self, total: Tensor, count: Tensor | int, constants: Constants) -> Tensor:
        """int64 sums by how many there were. Where there is less than no room, that is more by which to divide."""
        total, count = total << max(constants["left"], 0), count << max(-constants["left"], 0)
        return torch.div(2 * total + count * total.sign(), 2 * count, rounding_mode="trunc").to(torch.int32)


class AveragePool(Mean):
    """The mean of every window; ``divisor``: what sums are divided by in place of how many numbers they have."""

    name = "avg_pool"
    keys = schema(size=Steps, stride=Steps, padding=Places, ceil_mode=bool, count_include_pad=bool)
    others = schema(divisor=Annotated[int, Range(1, 2**16)])

    def format(self, node: Node) -> int:
        return FORMAT_OF_ANY_NETWORK

    def compute(self, net: DeployedNet, node: Node, x: Tensor) -> Tensor:
        return _average(node, x, node.get("divisor"))

    def scales(self, node: Node, known: list[Scaled], net: IntegerNet) -> tuple[Constants, Scaled]:
        """With a divisor of its own a mean may be larger than what it is of."""
        rows, columns = pair(node["size"])
        by = max(rows * columns / node.get("divisor", rows * columns), 1.0)
        return super().scales(node, [known[0]._replace(bound=known[0].bound * by, codes=False)], net)

    def integers(self, net: IntegerNet, node: Node, constants: Constants, x: Tensor) -> Tensor:
        total = _average(node, x.double(), 1).long()  # of exact sums
        return self.divided(total, _counts(node, x.shape), constants)

    def onnx(self, graph: OnnxGraph, node: Node) -> None:
        """Where windows may leave the padded image runtimes count otherwise: sums by a convolution, then divided."""
        (source,), name = node["inputs"], node["name"]
        if "divisor" not in node and not node["ceil_mode"]:
            more = {"count_include_pad": int(node["count_include_pad"])}
            graph.add_node("AveragePool", [source], name, **geometry(node, **more))
            return
        sizes, (top, left) = graph.sizes[source], pair(node["padding"])
        spans = zip(graph.sizes[name][2:], pair(node["stride"]), pair(node["size"]), sizes[2:], strict=True)
        ends = [(got - 1) * step + size - have for got, step, size, have in spans]
        pads = [top, left, max(ends[0] - top, 0), max(ends[1] - left, 0)]
        window = {"kernel_shape": pair(node["size"]), "strides": pair(node["stride"]), "pads": pads}
        ones = graph.constant(f"{name}.ones", torch.ones(sizes[1], 1, *pair(node["size"])))
        sums = graph.add_node("Conv", [source, ones], f"{name}.sums", group=sizes[1], **window)
        counts = graph.constant(f"{name}.counts", _counts(node, torch.Size(sizes)))
        graph.add_node("Div", [sums, counts], name)


def _counts(node: Node, sizes: torch.Size) -> Tensor:
    """By what the sum of each window is divided."""
    ones = torch.ones(1, 1, *sizes[2:], dtype=torch.float64)
    totals = _average(node, ones, 1)
    counts = torch.full_like(totals, node["divisor"]) if "divisor" in node else totals / _average(node, ones, None)
    return counts.round().long()


def _average(node: Node, x: Tensor, divisor: int | None) -> Tensor:
    window = node["size"], node["stride"], node["padding"], node["ceil_mode"], node["count_include_pad"]
    return F.avg_pool2d(x, *window, divisor)


@form(nn.MaxPool2d)
def _max_pool_layer(call: Call, module: nn.MaxPool2d, x: Ref) -> Ref:
    window = module.kernel_size, module.stride, module.padding, module.dilation
    return _max_pool(call, x, *window, module.ceil_mode, module.return_indices)


@form(F.max_pool2d, torch.max_pool2d)
def _max_pool(
    call: Call,
    x: Ref,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Ref:
    if return_indices:
        raise RefusedError(f"The max pool at {call.where} gives indices, which have no deployed form.")
    more = {} if plain(dilation) == 1 else {"dilation": plain(dilation)}
    more |= {"ceil_mode": True} if ceil_mode else {}
    size, stride = plain(kernel_size), plain(stride or kernel_size)
    return call.emit("max_pool", [x], size=size, stride=stride, padding=plain(padding), **more)


@form(nn.AvgPool2d)
def _average_pool_layer(call: Call, module: nn.AvgPool2d, x: Ref) -> Ref:
    window = module.kernel_size, module.stride, module.padding, module.ceil_mode
    return _average_pool(call, x, *window, module.count_include_pad, module.divisor_override)


@form(F.avg_pool2d)
def _average_pool(
    call: Call,
    x: Ref,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Ref:
    keys = {"size": plain(kernel_size), "stride": plain(stride or kernel_size), "padding": plain(padding)}
    keys |= {"ceil_mode": ceil_mode, "count_include_pad": count_include_pad}
    keys |= {} if divisor_override is None else {"divisor": divisor_override}
    return call.emit("avg_pool", [x], **keys)
