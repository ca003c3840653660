"""What a deployed network costs: parameters, multiply-accumulates and bit operations."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from repq_cli.deploy.network import DeployedNet
from repq_cli.deploy.operations import OPERATIONS
from repq_cli.deploy.operations.base import Node
from repq_cli.deploy.operations.layers import Layer
from repq_cli.quant.split import WIDE_BITS


class Cost(NamedTuple):
    """``bops = sum_l macs_l * weight_bits_l * activation_bits_l`` (float: 32 * 32), for one input."""

    macs: int
    bops: int


class LayerCost(NamedTuple):
    """What one convolution or classifier costs for one input.

    identity_macs: those of ``macs`` by the taps of a split identity, whose codes have 8 bits.
    """

    macs: int
    weight_bits: int
    act_bits: int
    identity_macs: int = 0

    @property
    def bops(self) -> int:
        """Bit operations."""
        of_weights = (self.macs - self.identity_macs) * self.weight_bits + self.identity_macs * WIDE_BITS
        return of_weights * self.act_bits


def layer_costs(net: DeployedNet) -> dict[str, LayerCost]:
    """The cost of every convolution and classifier by node name, for one input of the network's shape."""
    sizes = net.sizes()
    bits_of = {net.graph["input"]: 32}
    layers = {}
    for node in net.nodes:
        bits_of[node["name"]] = node["bits"] if node["op"] == "quantize" else 32
        operation = OPERATIONS[node["op"]]
        if isinstance(operation, Layer):
            source = node["inputs"][0]
            macs = operation.macs(node, sizes[source], sizes[node["name"]])
            of_identity = macs // math.prod(node["shape"][1:]) if node.get("identity") else 0
            layers[node["name"]] = LayerCost(macs, node["bits"], bits_of[source], of_identity)
    return layers


def cost(net: DeployedNet) -> Cost:
    """Multiply-accumulates and bit operations of the whole network for one input of its shape."""
    layers = layer_costs(net).values()
    return Cost(sum(layer.macs for layer in layers), sum(layer.bops for layer in layers))


def layer_parameters(net: DeployedNet, node: Node) -> int:
    """Weights, biases, slopes and batch-norm multipliers left in a layer; quantizers' steps are not counted."""
    others = [net.stored[node[key]].numel() for key in ("bias", "multiplier", "slope") if node.get(key)]
    return torch.Size(node["shape"]).numel() + sum(others)


def layer_bytes(net: DeployedNet, node: Node) -> int:
    """Bytes of a layer's tensors as they are stored: packed codes, steps, biases, multipliers."""
    keys = ("weight", "identity", "weight_step", "weight_zero_point", "bias", "bias_step", "multiplier", "slope")
    tensors = [net.stored[node[key]] for key in keys if node.get(key)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def parameter_count(net: DeployedNet) -> int:
    """``layer_parameters`` of all layers."""
    return sum(layer_parameters(net, node) for node in net.nodes if "weight" in node)
