"""What is wrong with the tensors that a node names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from repq_cli.deploy.operations.base import Node

WHOLE_FLOATS = ("zero_point", "weight_zero_point")  # codes that older versions stored as floats


def problems_of_codes(node: Node) -> Iterator[str]:
    """Of the range that codes have."""
    codes = node["high"] - node["low"] + 1
    if not 1 < codes <= 2 ** node["bits"] + (node["bits"] == 1):  # signs are -1 and 1
        yield f"has codes from {node['low']} to {node['high']}, which are none of {node['bits']} bits"


def problems_of_tensors(node: Node, tensors: Mapping[str, Tensor], sizes: Mapping[str, set[int]]) -> Iterator[str]:
    """Of the tensors that a node names. sizes: how many elements each may have."""
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
        elif key in WHOLE_FLOATS and not bool((tensor.double().abs() <= 2**15).all()):
            yield f"has a {key} that is no code"


def _is_of_kind(key: str, node: Node, tensor: Tensor) -> bool:
    """Whether a tensor's numbers are of the kind that its place wants."""
    whole = not tensor.is_floating_point() and not tensor.is_complex() and tensor.dtype != torch.bool
    if key == "weight" and node["bits"] != 32:
        return tensor.dtype == torch.uint8
    if key in WHOLE_FLOATS:
        return tensor.is_floating_point() or whole
    return whole if key == "identity" else tensor.is_floating_point() or (key == "bias" and whole)
