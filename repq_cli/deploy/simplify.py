"""Fewer nodes for the same network."""

from __future__ import annotations

from collections import Counter
from typing import Any

Node = dict[str, Any]


def simplified(nodes: list[Node], outputs: list[Any]) -> list[Node]:
    """Without what nobody reads, layers aside, and with shuffles of channels in place of the steps that they are."""
    nodes = _with_shuffles(nodes, outputs)
    read = set(outputs)
    for node in reversed(nodes):
        if node["name"] in read or "weight" in node:
            read |= {node["name"], *node["inputs"]}
    return [node for node in nodes if node["name"] in read]


def _with_shuffles(nodes: list[Node], outputs: list[Any]) -> list[Node]:
    """``[C, H, W]`` to ``[g, C/g, H, W]``, both swapped, and back: one node."""
    readers = Counter(name for node in nodes for name in node["inputs"])
    made = {node["name"]: node for node in nodes}
    found = []
    for node in nodes:
        path = [node]
        while path[-1]["op"] in ("reshape", "permute", "flatten") and len(path) < 3:
            before = made.get(path[-1]["inputs"][0])
            if before is None or readers[before["name"]] > 1 or before["name"] in outputs:
                break
            path.append(before)
        last, swap, first = (*path, {}, {})[:3]
        shape = first.get("shape", [])
        is_shuffle = (
            [part.get("op") for part in (last, swap, first)] == ["reshape", "permute", "reshape"]
            and len(shape) == 4
            and swap["order"] == [2, 1, 3, 4]
            and last["shape"] == [shape[0] * shape[1], *shape[2:]]
        )
        if is_shuffle:
            names = {"name": node["name"], "inputs": first["inputs"]}
            found.append({**names, "op": "channel_shuffle", "groups": shape[0]})
        else:
            found.append(node)
    return found
