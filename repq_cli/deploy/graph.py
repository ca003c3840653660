"""What a deployed network's description may say: its operations, their keys, and the tensors that they name.

A ``model.json`` that somebody sent is data. What is not listed here is not carried out, and every size is known to be
one before anything is computed with it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from repq_cli.bounds import Range
from repq_cli.deploy.packing import packed_bits
from repq_cli.typecheck import describe, legal, nearest

NAME = re.compile(r"[A-Za-z_]\w{0,250}", re.ASCII)
LARGEST_TENSOR = 2**31  # elements

Bits = Annotated[int, Range(1, 8)]
Code = Annotated[int, Range(-256, 256)]
Size = Annotated[int, Range(1, 2**20)]
Place = Annotated[int, Range(0, 256)]
Window = Place | tuple[Place, Place]
Step = Annotated[int, Range(1, 256)]
Activation = Literal["none", "relu", "relu6", "hardtanh", "prelu"]
Optional = str | None

CODES = {"low": Code, "high": Code, "by_sign": bool}
LAYER = {"bits": Bits | Literal[32], "weight": str, "bias": Optional, "bias_step": Optional, "multiplier": Optional}
OF_CODES = {**CODES, "weight_step": str, "weight_zero_point": Optional}  # of a layer of less than 32 bits


@dataclass(frozen=True)
class Operation:
    """Its keys beside ``name``, ``op`` and ``inputs``, those that it may lack, and how many inputs it has."""

    keys: Mapping[str, Any] = field(default_factory=dict)
    others: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[int, ...] = (1,)


OPERATIONS = {
    "quantize": Operation({"bits": Bits, **CODES, "step": str, "zero_point": Optional}),
    "conv": Operation(
        {
            **LAYER,
            "shape": tuple[Size, Size, Size, Size],
            "stride": Step,
            "padding": Place,
            "groups": Size,
            "pad_value": Literal[-1, 0, 1],
            "input_scale": bool,
            "activation": Activation,
        },
        {**OF_CODES, "slope": str, "identity": Optional},
        (1, 2),
    ),
    "linear": Operation({**LAYER, "shape": tuple[Size, Size]}, OF_CODES),
    "add": Operation(inputs=(2,)),
    "global_average_pool": Operation(),
    "flatten": Operation(),
    "relu": Operation(),
    "relu6": Operation(),
    "hardtanh": Operation(),
    "max_pool": Operation({"size": Window, "stride": Window, "padding": Window}),
    "pixel_shuffle": Operation({"scale": Step}),
    "nearest_upsample": Operation({"scale": Step}),
}
# What the description says of images and answers, where it says it.
ABOUT = {
    "task": Literal["classification", "super_resolution"],
    "input_shape": tuple[Size, Size, Size],
    "mean": list[float],
    "std": list[float],
    "classes": list[str],
    "scale": Annotated[int, Range(1, 256)],
    "colour": Literal["luma", "rgb"],
}
WANTED = {"classification": ("input_shape",), "super_resolution": ("input_shape", "scale", "colour")}


class GraphError(ValueError):
    """What is wrong with a description, as a sentence's end."""


def check(graph: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Raises GraphError where a description is none that can be carried out with these tensors."""
    for key in ("input", "output"):
        _require(isinstance(graph.get(key), str), f"it names no {key}")
    for key in ("input_shape", *WANTED.get(str(graph.get("task")), ())):
        _require(key in graph, f"it lacks {key}")
    for key, annotation in ABOUT.items():
        if key in graph and not legal(annotation, graph[key]):
            raise GraphError(f"its {key} must be {describe(annotation)}")
    nodes = graph.get("nodes")
    _require(isinstance(nodes, list) and all(isinstance(node, dict) for node in nodes), "its nodes are none")
    assert isinstance(nodes, list)
    known: dict[str, Mapping[str, Any]] = {str(graph["input"]): {}}
    for node in nodes:
        name = node.get("name")
        _require(isinstance(name, str) and NAME.fullmatch(name) is not None, f"a node is called {str(name)[:50]!r}")
        for problem in _problems(node, known, tensors):
            raise GraphError(f"its node {name} {problem}")
        known[name] = node
    floats = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    _require(len(floats) == 1, f"its tensors are of {len(floats)} kinds of floats")
    _require(graph["output"] in known, f"its output {str(graph['output'])[:50]} is no node's")


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise GraphError(problem)


def _problems(
    node: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]], tensors: Mapping[str, Tensor]
) -> Iterator[str]:
    op, inputs = node.get("op"), node.get("inputs")
    operation = OPERATIONS.get(op) if isinstance(op, str) else None
    if node["name"] in known:
        yield "is there twice"
    if operation is None:
        near = nearest(op, OPERATIONS)
        yield f"has the operation {str(op)[:50]}, which is none" + (f"; did you mean '{near}'?" if near else "")
        return
    if not isinstance(inputs, list) or len(inputs) not in operation.inputs:
        yield f"has other inputs than {op} takes"
        return
    strange = [name for name in inputs if not isinstance(name, str) or name not in known]
    if strange:
        yield f"reads {str(strange[0])[:50]}, which no node before it gives"
    given = {key: value for key, value in node.items() if key not in ("name", "op", "inputs")}
    yield from _mistakes(given, operation)
    if "weight" in operation.keys:
        yield from _of_layer(node, known, tensors)
    elif op == "quantize":
        yield from _of_codes(node)
        yield from _of_tensors(node, tensors, {"step": {1}, "zero_point": {1}})


def _mistakes(given: Mapping[str, Any], operation: Operation) -> Iterator[str]:
    for key, annotation in {**operation.keys, **operation.others}.items():
        if key not in given and key in operation.keys:
            yield f"lacks {key}"
        elif key in given and not legal(annotation, given[key]):
            yield f"has a {key} that is not {describe(annotation)}"
    for key in given:
        if key not in operation.keys and key not in operation.others:
            yield f"has a key {key[:50]}, which it has no use for"


def _of_codes(node: Mapping[str, Any]) -> Iterator[str]:
    codes = node["high"] - node["low"] + 1
    if not 1 < codes <= 2 ** node["bits"] + (node["bits"] == 1):  # signs are -1 and 1
        yield f"has codes from {node['low']} to {node['high']}, which are none of {node['bits']} bits"


def _of_layer(
    node: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]], tensors: Mapping[str, Tensor]
) -> Iterator[str]:
    outputs, count = node["shape"][0], math.prod(node["shape"])
    on_codes = known[node["inputs"][0]].get("op") == "quantize"
    if count > LARGEST_TENSOR:
        yield f"has a weight of {count} elements"
        return
    if outputs % node.get("groups", 1):
        yield f"has {outputs} outputs in {node['groups']} groups"
    if node["bits"] != 32:
        if missing := [key for key in OF_CODES if key not in node]:
            yield f"lacks {', '.join(missing)}"
            return
        yield from _of_codes(node)
    elif strange := [key for key in (*OF_CODES, "identity") if node.get(key)]:
        yield f"has {', '.join(strange)}, and weights of 32 bits"
    elif node["bias_step"]:
        yield "has a bias_step, and weights of 32 bits"
    if (node.get("activation") == "prelu") != ("slope" in node):
        yield "has a slope without prelu, or prelu without a slope"
    if bool(node.get("input_scale")) != (len(node["inputs"]) == 2):
        yield "has other inputs than its input_scale wants"
    if node.get("pad_value") and not on_codes:
        yield "pads with a value, and reads no codes"
    packed = -(-count * packed_bits(node["bits"]) // 8) if node["bits"] != 32 else count
    channels = {1, outputs}
    sizes = {"weight": {packed}, **dict.fromkeys(("weight_step", "weight_zero_point"), channels)}
    sizes |= {"bias": {outputs}, **dict.fromkeys(("bias_step", "multiplier", "slope"), channels), "identity": {outputs}}
    yield from _of_tensors(node, tensors, sizes)


def _of_tensors(node: Mapping[str, Any], tensors: Mapping[str, Tensor], sizes: Mapping[str, set[int]]) -> Iterator[str]:
    """What is wrong with the tensors that a node names; ``sizes``: how many elements each may have."""
    for key, wanted in sizes.items():
        name = node.get(key)
        if name is None:
            continue
        tensor = tensors.get(name)
        if tensor is None:
            yield f"names {name[:50]} as its {key}, and there is no such tensor"
        elif tensor.numel() not in wanted:
            yield f"has a {key} of {tensor.numel()} elements in place of {' or '.join(map(str, sorted(wanted)))}"
        elif key == "weight" and node["bits"] == 32 and list(tensor.shape) != node["shape"]:
            yield f"has a weight of another shape than {node['shape']}"
        elif not _is_of_kind(key, node, tensor):
            yield f"has a {key} of {str(tensor.dtype).removeprefix('torch.')}"
        elif key.endswith("step") and not bool((tensor.double() > 0).all() and tensor.isfinite().all()):
            yield f"has a {key} that is not above 0 and finite"
        elif key in ("zero_point", "weight_zero_point") and not bool((tensor.double().abs() <= 2**15).all()):
            yield f"has a {key} that is no code"


def _is_of_kind(key: str, node: Mapping[str, Any], tensor: Tensor) -> bool:
    """Whether a tensor's numbers are of the kind that its place wants."""
    whole = not tensor.is_floating_point() and not tensor.is_complex() and tensor.dtype != torch.bool
    if key == "weight" and node["bits"] != 32:
        return tensor.dtype == torch.uint8
    if key in ("zero_point", "weight_zero_point"):
        return tensor.is_floating_point() or whole
    return whole if key == "identity" else tensor.is_floating_point() or (key == "bias" and whole)
