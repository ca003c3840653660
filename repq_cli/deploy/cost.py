"""What a deployed network costs: parameters, multiply-accumulates and bit operations."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from repq_cli.deploy.network import DeployedNet


class Cost(NamedTuple):
    """``bops = sum_l macs_l * weight_bits_l * activation_bits_l`` (float: 32 * 32), for one input."""

    macs: int
    bops: int


@torch.no_grad()
def cost(net: DeployedNet) -> Cost:
    """Multiply-accumulates and bit operations of every convolution and classifier, for one input of its shape."""
    bits_of = {net.graph["input"]: 32}
    values = {net.graph["input"]: torch.zeros(1, *net.graph["input_shape"])}
    macs = bops = 0
    for node in net.nodes:
        (source,) = node["inputs"]
        with FlopCounterMode(display=False) as counter:  # it counts two operations per multiply-accumulate
            values[node["name"]] = getattr(net, f"_{node['op']}")(node, values[source])
        bits_of[node["name"]] = node["bits"] if node["op"] == "quantize" else 32
        if "weight" in node:
            layer = counter.get_total_flops() // 2
            macs += layer
            bops += layer * node["bits"] * bits_of[source]
    return Cost(macs, bops)


def parameter_count(net: DeployedNet) -> int:
    """Weights, biases and batch-norm multipliers that are left; the steps of quantizers are not counted."""
    keys = ("bias", "multiplier")
    weights = sum(torch.Size(node["shape"]).numel() for node in net.nodes if "weight" in node)
    return weights + sum(net.stored[node[key]].numel() for node in net.nodes for key in keys if node.get(key))
