"""What a deployed network's description may say: its operations, their keys, and the tensors that they name.

A ``model.json`` that somebody sent is data. What is not listed here is not carried out, and every size is known to be
one before anything is computed with it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from torch import Tensor

from repq_cli.answers import leaves
from repq_cli.bounds import Range
from repq_cli.deploy.operations import OPERATIONS, Operation
from repq_cli.deploy.operations.base import LARGEST_TENSOR, Node, Size
from repq_cli.deploy.outputs import is_legal
from repq_cli.typecheck import describe, legal, nearest

NAME = re.compile(r"[A-Za-z_]\w{0,250}", re.ASCII)
# What the description says of images and answers, where it says it.
ABOUT = {
    "task": Literal["classification", "super_resolution", "features"],
    "input_shape": tuple[Size, Size, Size],
    "mean": list[float],
    "std": list[float],
    "classes": list[str],
    "scale": Annotated[int, Range(1, 256)],
    "colour": Literal["luma", "rgb"],
}
WANTED = {"super_resolution": ("scale", "colour")}  # beside the input's shape


class GraphError(ValueError):
    """What is wrong with a description, as a sentence's end."""


def check(graph: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Raises GraphError where a description is none that can be carried out with these tensors."""
    _require(isinstance(graph.get("input"), str), "it names no input")
    _require(is_legal(graph.get("output")), "it names no output")
    for key in ("input_shape", *WANTED.get(str(graph.get("task")), ())):
        _require(key in graph, f"it lacks {key}")
    for key, annotation in ABOUT.items():
        if key in graph and not legal(annotation, graph[key]):
            raise GraphError(f"its {key} must be {describe(annotation)}")
    nodes = graph.get("nodes")
    _require(isinstance(nodes, list) and all(isinstance(node, dict) for node in nodes), "its nodes are none")
    assert isinstance(nodes, list)
    known: dict[str, Node] = {str(graph["input"]): {}}
    for node in nodes:
        name = node.get("name")
        _require(isinstance(name, str) and NAME.fullmatch(name) is not None, f"a node is called {str(name)[:50]!r}")
        for problem in _problems(node, known, tensors):
            raise GraphError(f"its node {name} {problem}")
        known[name] = node
    floats = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    _require(len(floats) == 1, f"its tensors are of {len(floats)} kinds of floats")
    for output in leaves(graph["output"]):
        _require(output in known, f"its output {output[:50]} is no node's")


def check_sizes(sizes: Mapping[str, list[int]]) -> None:
    """Raises GraphError where a network would fill memory for one image."""
    for name, size in sizes.items():
        _require(math.prod(size) <= LARGEST_TENSOR, f"its node {name} gives {'x'.join(map(str, size))} numbers")


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise GraphError(problem)


def _problems(node: Node, known: Mapping[str, Node], tensors: Mapping[str, Tensor]) -> Iterator[str]:
    op, inputs = node.get("op"), node.get("inputs")
    operation = OPERATIONS.get(op) if isinstance(op, str) else None
    if node["name"] in known:
        yield "is there twice"
    if operation is None:
        near = nearest(op, OPERATIONS)
        yield f"has the operation {str(op)[:50]}, which is none" + (f"; did you mean '{near}'?" if near else "")
        return
    least, most = operation.inputs
    if not isinstance(inputs, list) or not least <= len(inputs) <= most:
        yield f"has other inputs than {op} takes"
        return
    strange = [name for name in inputs if not isinstance(name, str) or name not in known]
    if strange:
        yield f"reads {str(strange[0])[:50]}, which no node before it gives"
    given = {key: value for key, value in node.items() if key not in ("name", "op", "inputs")}
    yield from _mistakes(given, operation)
    yield from operation.problems(node, known, tensors)


def _mistakes(given: Mapping[str, Any], operation: Operation) -> Iterator[str]:
    for key, annotation in {**operation.keys, **operation.others}.items():
        if key not in given and key in operation.keys:
            yield f"lacks {key}"
        elif key in given and not legal(annotation, given[key]):
            yield f"has a {key} that is not {describe(annotation)}"
    for key in given:
        if key not in operation.keys and key not in operation.others:
            yield f"has a key {key[:50]}, which it has no use for"
