"""Weights of 4 bits and fewer as INT4: half a byte each in the file, int8 in memory.

Runtimes have no kernel that sums products with INT4. What makes int8 of it is a chain of nodes on constants, which is
carried out once, when a file is loaded, so that networks are as fast as with int8 in it. Needs the extra ``export``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from onnx import TensorProto, helper
from torch import Tensor

from repq_cli.deploy.operations.base import Node

if TYPE_CHECKING:
    from repq_cli.deploy.onnx_constants import Constants

TYPES = {TensorProto.INT4: (-8, 7), TensorProto.UINT4: (0, 15)}


def type_of(node: Node) -> int | None:
    """The type of 4 bits that holds all codes of a layer's weight, a split identity's aside; None if none does."""
    if node["bits"] > 4:
        return None
    return next((kind for kind, (low, high) in TYPES.items() if low <= node["low"] and node["high"] <= high), None)


def small_codes(graph: Constants, node: Node, kind: int, spread: int) -> str:
    """What gives ``spread`` times the weight's codes, as int8. kind: a key of ``TYPES``.

    Codes of a split identity, one of each output channel, have 8 bits and are put among the others.
    """
    name, codes = f"{node['name']}.weight", graph.net.codes(node)
    taps = graph.net.stored[node["identity"]] if node.get("identity") else None
    if taps is not None:
        outputs, inputs, rows, columns = node["shape"]
        channel = torch.arange(outputs)
        places = torch.stack(
            [channel, channel % inputs, *(torch.full_like(channel, n // 2) for n in (rows, columns))], 1
        )
        codes[tuple(places.T)] = 0
    graph.constants.append(helper.make_tensor(f"{name}.small", kind, node["shape"], _packed(codes), raw=True))
    wide = graph.add_node("Cast", [f"{name}.small"], f"{name}.wide", to=TensorProto.INT32)
    if taps is not None:
        inputs = [
            wide,
            graph.constant(f"{name}.places", places, np.int64),
            graph.constant(f"{name}.taps", taps, np.int32),
        ]
        wide = graph.add_node("ScatterND", inputs, f"{name}.whole")
    if spread != 1:
        wide = graph.add_node("Mul", [wide, graph.constant(f"{name}.spread", spread, np.int32)], f"{name}.spread_codes")
    return graph.add_node("Cast", [wide], f"{name}.codes", to=TensorProto.INT8)


def _packed(codes: Tensor) -> bytes:
    """Two to a byte, the first in the lower half, as ONNX has them."""
    halves = codes.flatten().numpy().astype(np.uint8) & 15
    halves = np.append(halves, np.zeros(len(halves) % 2, np.uint8)).reshape(-1, 2)
    return (halves[:, 0] | halves[:, 1] << 4).astype(np.uint8).tobytes()
