"""The convolution that reads the image, on pixels in groups: the same sums, in a shape that int8 kernels are made for.

They multiply input channels by fours; an image has three or one, and its convolution takes a slow path. Side by side in
memory, the pixels of a row can be taken together: ``G`` pixels of ``C`` channels are one of ``G C`` channels, and ``P``
outputs of ``O`` channels, whose first taps are ``stride`` pixels apart, one of ``P O``. Kernels have weights of zero
where a group holds more than an output reads.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

CHANNELS = 4  # that kernels multiply at once
CODES = ("QuantizeLinear", "Clip", "DequantizeLinear")
BEFORE_CODES = ("QuantizeLinear", "MaxPool")  # what reads an output that a kernel can write as codes


class Groups(NamedTuple):
    """Pixels and outputs that are taken together, and how many groups beside its own a group of outputs reads."""

    pixels: int
    outputs: int
    before: int
    after: int


def groups(channels: int, size: int, stride: int, padding: int, columns: int) -> Groups | None:
    """How to group rows of ``columns`` pixels; None where there is no need, or groups do not fit.

    >>> groups(3, 3, 2, 1, 224)  # RepVGG's stem: of 4 pixels, the first output reads -1 to 1, the second 1 to 3
    Groups(pixels=4, outputs=2, before=1, after=0)
    >>> groups(3, 7, 2, 3, 224)  # ResNet's
    Groups(pixels=4, outputs=2, before=1, after=1)
    >>> groups(3, 3, 2, 1, 222), groups(64, 3, 2, 1, 224), groups(3, 3, 2, 0, 224)
    (None, None, None)
    """
    pixels = math.lcm(stride, CHANNELS // math.gcd(CHANNELS, channels))
    outputs = pixels // stride
    found = (columns + 2 * padding - size) // stride + 1
    if channels % CHANNELS == 0 or columns % pixels or found != columns // stride:
        return None
    last = stride * (outputs - 1) - padding + size - 1
    return Groups(pixels, outputs, -(-padding // pixels), max(last // pixels, 0))


def grouped(weight: NDArray[Any], zero: NDArray[Any], stride: int, padding: int, by: Groups) -> NDArray[Any]:
    """Codes ``[P O, G C, k, before + 1 + after]`` of codes ``[O, C, k, k]``. zero: the code of zero, ``[O]``."""
    outputs, channels, size, _ = weight.shape
    wide = np.empty((by.outputs, outputs, by.pixels, channels, size, by.before + 1 + by.after), weight.dtype)
    wide[:] = zero.reshape(-1, 1, 1, 1, 1)
    for output in range(by.outputs):
        for tap in range(size):
            group, pixel = divmod(stride * output - padding + tap, by.pixels)
            wide[output, :, pixel, :, :, group + by.before] = weight[..., tap]
    return wide.reshape(by.outputs * outputs, by.pixels * channels, size, -1)


def group_pixels(graph: onnx.GraphProto, channels: int, columns: int) -> None:
    """Rewrite the convolution of codes that reads the image, if its pixels can be grouped and its output be codes."""
    path = _stem(graph)
    if path is None:
        return
    conv, last = path
    about = {item.name: helper.get_attribute_value(item) for item in conv.attribute}
    spans = [about[key] for key in ("kernel_shape", "strides", "pads")]
    size, stride, padding = (span[0] for span in spans)
    is_square = about["group"] == 1 and "dilations" not in about and all(len(set(span)) == 1 for span in spans)
    by = groups(channels, size, stride, padding, columns) if is_square else None
    if by is None:
        return
    constants = {item.name: item for item in graph.initializer}
    names = [name for maker in _makers(graph, conv.input[1:]) for name in maker.input]
    if names[0] not in constants:  # INT4, of which nodes make the codes
        return
    codes, *per_channel = (constants[name] for name in names)
    weight, zero = numpy_helper.to_array(codes), numpy_helper.to_array(per_channel[1])
    _replace(codes, grouped(weight, zero, stride, padding, by))
    for item in per_channel:
        _replace(item, np.tile(numpy_helper.to_array(item), by.outputs))
    geometry = {"kernel_shape": [size, by.before + 1 + by.after], "strides": [stride, 1]}
    geometry["pads"] = [padding, by.before, padding, by.after]
    del conv.attribute[:]
    conv.attribute.extend(helper.make_attribute(key, value) for key, value in geometry.items())
    source, output = conv.input[0], last.output[0]
    conv.input[0] = f"{source}.groups"
    last.name = last.output[0] = f"{output}.groups"
    nodes = list(graph.node)
    _reshape_rows(graph, nodes.index(last) + 1, last.output[0], output, columns // stride, len(weight))
    _reshape_rows(graph, nodes.index(conv), source, conv.input[0], columns // by.pixels, by.pixels * channels)


def _stem(graph: onnx.GraphProto) -> tuple[onnx.NodeProto, onnx.NodeProto] | None:
    """The convolution behind the codes of the graph's input, and the ReLU behind it or itself.

    None if its weights are no codes, or something reads its output that needs numbers.
    """
    path: list[onnx.NodeProto] = []
    name = graph.input[0].name
    while not path or path[-1].op_type in CODES:
        readers = _readers(graph, name)
        if len(readers) != 1 or readers[0].op_type not in (*CODES, "Conv"):
            return None
        path += readers
        name = path[-1].output[0]
    *before, conv = path
    readers = _readers(graph, name)
    last = readers[0] if [reader.op_type for reader in readers] == ["Relu"] else conv
    is_int8 = bool(before) and len(_makers(graph, conv.input[1:])) == len(conv.input) - 1
    readers = _readers(graph, last.output[0])
    return (conv, last) if is_int8 and all(reader.op_type in BEFORE_CODES for reader in readers) else None


def _readers(graph: onnx.GraphProto, name: str) -> list[onnx.NodeProto]:
    return [node for node in graph.node if name in node.input]


def _makers(graph: onnx.GraphProto, names: Iterable[str]) -> list[onnx.NodeProto]:
    """The nodes that make tensors of codes, in the order of their names."""
    found = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    return [found[name] for name in names if name in found]


def _replace(constant: onnx.TensorProto, value: NDArray[Any]) -> None:
    constant.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), constant.name))


def _reshape_rows(graph: onnx.GraphProto, index: int, source: str, target: str, columns: int, channels: int) -> None:
    """Rows of another number of columns, with the pixels in the order they have where channels are last.

    Runtimes put channels last for int8, which leaves of the three nodes the one that moves nothing.
    """
    shape = numpy_helper.from_array(np.array([0, 0, columns, channels], np.int64), f"{target}.shape")
    graph.initializer.append(shape)
    last, rows = f"{target}.channels_last", f"{target}.rows"
    nodes = [
        helper.make_node("Transpose", [source], [last], name=last, perm=[0, 2, 3, 1]),
        helper.make_node("Reshape", [last, shape.name], [rows], name=rows),
        helper.make_node("Transpose", [rows], [target], name=target, perm=[0, 3, 1, 2]),
    ]
    for node in reversed(nodes):
        graph.node.insert(index, node)
