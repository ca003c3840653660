"""What a deployed network costs: parameters, multiply-accumulates and bit operations."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch

from repq_cli.deploy.network import DeployedNet
from repq_cli.deploy.operations.base import Node
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


@torch.no_grad()
def layer_costs(net: DeployedNet) -> dict[str, LayerCost]:
    """The cost of every convolution and classifier by node name, for one input of the network's shape."""
    from torch.utils.flop_counter import FlopCounterMode  # a third of a second, and nothing that training waits for

    net = copy.deepcopy(net).to("meta")  # shapes are enough, whatever the size of the images
    bits_of = {net.graph["input"]: 32}
    values = {net.graph["input"]: torch.zeros(1, *net.graph["input_shape"], device="meta")}
    layers = {}
    for node in net.nodes:
        with FlopCounterMode(display=False) as counter:  # it counts two operations per multiply-accumulate
            values[node["name"]] = net.compute(node, *net.inputs(node, values))
        bits_of[node["name"]] = node["bits"] if node["op"] == "quantize" else 32
        if "weight" in node:
            macs = counter.get_total_flops() // 2
            taps = torch.Size(node["shape"][1:]).numel()
            of_identity = macs // taps if node.get("identity") else 0
            layers[node["name"]] = LayerCost(macs, node["bits"], bits_of[node["inputs"][0]], of_identity)
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
