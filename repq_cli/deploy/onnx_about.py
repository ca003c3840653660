"""What an ONNX file says of itself in its metadata: whose network it is, and what its codes are."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from repq_cli.deploy.operations.base import Node

if TYPE_CHECKING:
    from repq_cli.deploy.onnx_graph import OnnxGraph

TASKS = ("mean", "std", "classes")  # what whoever runs a file has to know of images and answers


def about(graph: OnnxGraph) -> dict[str, str]:
    """All entries; ``activations`` and ``layers``: JSON, by name, of every tensor and every weight what it is."""
    net, form = graph.net, graph.form
    tensors = {node["name"]: codes(node) for node in net.nodes if node["op"] == "quantize"}
    layers = {node["name"]: f"{node['bits']} bit" for node in net.nodes if "weight" in node}
    widths = sorted({node["bits"] for node in net.nodes if "bits" in node})
    kind = "int8 without zero-points" if form.symmetric else "uint8, signed ones moved by 128"
    found = {
        "bits": ", ".join(map(str, widths)),
        "codes": f"{kind}; fewer bits by a tighter clip",
        "activations": json.dumps(tensors),
        "layers": json.dumps(layers),
        "deployed": net.digest(),
        "biases": "float" if form.float_biases or form.symmetric else "int32",
        "weights": "from {} to {}{}".format(
            *graph.weights, ", of 4 bits and fewer stored as INT4" if form.int4 else ""
        ),
    }
    if graph.float_layers and not form.float_biases:
        found["float_layers"] = ", ".join(graph.float_layers)
    found |= {key: str(net.graph[key]) for key in TASKS if key in net.graph}
    if not isinstance(net.graph["output"], str):
        found["outputs"] = json.dumps(net.graph["output"])
    return found


def codes(node: Node) -> str:
    """What a quantizer gives.

    >>> codes({"bits": 4, "low": 0, "high": 15})
    '4 bit, codes from 0 to 15'
    """
    return f"{node['bits']} bit, codes from {node['low']} to {node['high']}"
