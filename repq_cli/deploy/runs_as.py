"""How each layer of a deployed network will run once it is exported: as int8, or in floating point, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from repq_cli.deploy.network import DeployedNet
from repq_cli.deploy.operations import OPERATIONS
from repq_cli.deploy.operations.base import Node
from repq_cli.deploy.signs import sums_before_signs

INT8 = "int8"
# Between a layer and its quantizer these leave the order of values as it is, so that codes can be taken before them.
PASSING = ("max_pool", "flatten", "pixel_shuffle", "nearest_upsample")


def runs_as(net: DeployedNet) -> dict[str, str]:
    """By layer ``int8``, or ``float: `` and the reason, as ONNX Runtime's kernels on x86 have it."""
    signs = sums_before_signs(net)
    found = {}
    for node in net.nodes:
        if "weight" in node:
            why = _why_float(net, node, node["name"] in signs)
            found[node["name"]] = INT8 if why is None else f"float: {why}"
    return found


def floating(ways: dict[str, str]) -> Iterator[str]:
    """How many layers will run in floating point once exported, by reason; nothing where all are int8.

    >>> [*floating({"stem": "int8", "tail": "float: the network's output is not quantized"})]
    ["1 of 2 layers will run in floating point: the network's output is not quantized (tail)"]
    """
    reasons = Counter(way.partition(": ")[2] for way in ways.values() if way != INT8)
    for reason, count in reasons.items():
        names = [name for name, way in ways.items() if way.endswith(f": {reason}")]
        more = "" if count <= 3 else ", …"
        yield f"{count} of {len(ways)} layers will run in floating point: {reason} ({', '.join(names[:3])}{more})"


def _why_float(net: DeployedNet, node: Node, before_signs: bool) -> str | None:
    name, zero_points = node["name"], node.get("weight_zero_point")
    if node["bits"] == 32:
        return "weights are not quantized"
    if name not in net.on_codes:
        return "inputs are not quantized"
    if node.get("input_scale"):
        return "XNOR-Net's K"
    if before_signs:
        return "signs are taken of its sums"
    gives_answers = node["op"] == "linear" and name == net.graph["output"]  # numbers, to which numbers can be added
    if node["bias"] and not node["bias_step"] and not gives_answers:
        return "biases are no int32 (quant.int32_bias)"
    if zero_points and node.get("groups", 1) == node["shape"][0] > 1 and net.stored[zero_points].unique().numel() > 1:
        return "a zero-point for each channel of a depthwise kernel"
    if node.get("activation", "none") != "none" and OPERATIONS[node["op"]].limits(node) is None:
        return f"{node['activation']} before its codes"
    return None if gives_answers else _why_no_codes(net, name)


def _why_no_codes(net: DeployedNet, name: str) -> str | None:
    """Why what a layer gives does not become codes at once."""
    if name == net.graph["output"]:
        return "the network's output is not quantized"
    for node in net.nodes:
        if name not in node["inputs"] or node["op"] == "quantize":
            continue
        if node["op"] not in PASSING and OPERATIONS[node["op"]].limits(node) is None:
            return f"{node['op']} reads its sums before they are quantized"
        why = _why_no_codes(net, node["name"])
        if why is not None:
            return why
    return None
