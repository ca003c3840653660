"""From a convolution's integer sums to the signs that are taken of them: thresholds in place of all that lies between.

What lies between, a batch norm, an activation function, a shortcut's code, keeps the order of numbers or turns it
round, rounding included, and so one integer of each channel decides. It is found by computing the very same operations
at integers, so that signs are the same bit for bit. (BNN, arXiv 1602.02830, and XNOR-Net, 1603.05279, have the idea.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from repq_cli.answers import leaves
from repq_cli.deploy.network import DeployedNet
from repq_cli.deploy.operations import OPERATIONS
from repq_cli.deploy.operations.base import FORMAT, FORMAT_OF_ANY_NETWORK, Node
from repq_cli.deploy.operations.layers import behind
from repq_cli.errors import ConfigError

CODES = ((-1, 1), (0, 1))
EXACT = 2**24  # up to which float32 holds every sum


class Chain(NamedTuple):
    """What lies between a convolution and a quantizer of two codes; no one else reads any of it.

    layer     the convolution, of codes
    between   the nodes that follow it, in order
    pool      the max pool among them, the last node that is more than a function of one number
    choice    the quantizer of two codes that an addition among them reads beside
    """

    layer: Node
    between: list[Node]
    pool: Node | None
    choice: str | None


def is_of_two_codes(node: Node) -> bool:
    """Whether it is a quantizer of one bit."""
    return (
        node["op"] == "quantize"
        and node["bits"] == 1
        and (node["low"], node["high"]) in CODES
        and not node["zero_point"]
    )


def is_binary(node: Node, quantizers: Mapping[str, Node]) -> bool:
    """Whether it is a convolution of signs with codes of one bit."""
    source = quantizers.get(node["inputs"][0])
    return (
        node["op"] == "conv"
        and OPERATIONS["conv"].format(node) != FORMAT_OF_ANY_NETWORK  # windows are square
        and source is not None
        and (node["bits"], node["low"], node["high"]) == (1, -1, 1)
        and is_of_two_codes(source)
        and not node["weight_zero_point"]
    )


def require_binary(net: DeployedNet) -> None:
    """Raise ConfigError for a network without a binary convolution."""
    if not any(is_binary(node, net.quantizers) for node in net.nodes):
        raise ConfigError(
            "No convolution of this network has one bit in weights and activations, and nothing runs by XNOR: "
            "train with quant=bnn, xnor or w1a1."
        )


def chain_to(net: DeployedNet, quantizer: Node) -> Chain | None:
    """What leads to a quantizer of two codes, if thresholds can take its place."""
    by_name = {node["name"]: node for node in net.nodes}
    answers = set(leaves(net.graph["output"]))
    between: list[Node] = []
    pool = choice = None
    name = quantizer["inputs"][0]
    while name in by_name and name not in answers and sum(name in node["inputs"] for node in net.nodes) == 1:
        node = by_name[name]
        if "weight" in node:
            fits = node["op"] == "conv" and node["name"] in net.on_codes and not node["input_scale"]
            fits &= node["activation"] != "prelu" and _largest_sum(net, node) < EXACT
            return Chain(node, between[::-1], pool, choice) if fits else None
        between.append(node)
        name = node["inputs"][0]
        if (
            node["op"] == "max_pool"
            and pool is None
            and choice is None
            and OPERATIONS["max_pool"].format(node) == FORMAT
        ):
            pool = node
        elif node["op"] == "add" and choice is None:
            codes = [other for other in node["inputs"] if is_of_two_codes(by_name.get(other, {"op": ""}))]
            if len(codes) != 1:
                return None
            (choice,) = codes
            (name,) = (other for other in node["inputs"] if other != choice)
        elif OPERATIONS[node["op"]].limits(node) is None:
            return None
    return None


def _largest_sum(net: DeployedNet, node: Node) -> float:
    """What the magnitude of a sum can be."""
    source = net.quantizers[node["inputs"][0]]
    zero = float(net.stored[source["zero_point"]]) if source["zero_point"] else 0.0
    weight, bias = net.held(node, "weight"), net.held(node, "summed_bias")
    assert weight is not None
    reach = weight.double().abs().flatten(1).sum(1) * max(abs(source["low"] - zero), abs(source["high"] - zero))
    return float((reach if bias is None else reach + bias.double().abs()).max())


@torch.no_grad()
def thresholds(net: DeployedNet, chain: Chain, quantizer: Node) -> tuple[Tensor, Tensor]:
    """``least`` and ``flips``: the code is the greater one where ``sum >= least``, xor flips.

    least: ``[1, O]``, or ``[2, O]`` of the choice's two codes, of sums without the layer's own bias; flips: bool
    ``[O]``, of channels in which it is the greater one below.
    """
    outputs, reach = chain.layer["shape"][0], int(_largest_sum(net, chain.layer)) + 1
    codes = [None] if chain.choice is None else [net.quantizers[chain.choice][key] for key in ("low", "high")]

    def greater(sums: Tensor) -> Tensor:
        """Of sums ``[C, O]``, for each code of the choice."""
        found = [_code(net, chain, quantizer, row, code) for row, code in zip(sums, codes, strict=True)]
        return torch.stack(found) == quantizer["high"]

    low = torch.full((len(codes), outputs), -reach, dtype=torch.int64)
    high = -low
    at_low, at_high = greater(low), greater(high)
    flips = (at_low & ~at_high).any(0)
    while bool((high - low > 1).any()):
        middle = torch.div(low + high, 2, rounding_mode="floor")
        same = greater(middle) == at_low
        low, high = torch.where(same, middle, low), torch.where(same, high, middle)
    always = at_low == at_high
    never = torch.where(at_low == flips, EXACT, -EXACT)  # the code of every sum, by a threshold that none crosses
    return torch.where(always, never, high), flips


def _code(net: DeployedNet, chain: Chain, quantizer: Node, sums: Tensor, code: int | None) -> Tensor:
    """The quantizer's codes ``[O]`` of sums ``[O]``, computed as in the network."""
    bias = net.held(chain.layer, "summed_bias")
    whole = sums if bias is None else sums + bias.long()
    y = behind(net, chain.layer, whole.to(net.dtype).view(1, -1, 1, 1))
    for node in chain.between:
        if node["op"] == "add":
            assert chain.choice is not None and code is not None
            step = net.held(net.quantizers[chain.choice], "step")
            assert step is not None
            y = y + code * step
        elif node["op"] != "max_pool":
            y = OPERATIONS[node["op"]].compute(net, node, y)
    return OPERATIONS["quantize"].compute(net, quantizer, y).view(-1)
