"""The deployed network with its binary convolutions on packed words. Needs the extra ``xnor``."""

from __future__ import annotations

import torch
from torch import Tensor

from repq_cli.deploy.network import DeployedNet
from repq_cli.deploy.operations import OPERATIONS
from repq_cli.deploy.operations.base import FORMAT_OF_ANY_NETWORK, Node
from repq_cli.deploy.operations.layers import behind
from repq_cli.deploy.xnor import BinaryConv
from repq_cli.errors import ConfigError

CODES = ((-1, 1), (0, 1))


class XnorNet(DeployedNet):
    """As ``DeployedNet``; convolutions whose weights and activations have one bit run by XNOR and popcount.

    Their sums are integers and exact; all else is floating point as there. One thread counts bits, however many torch
    uses elsewhere. Raises ConfigError for a network that has no such convolution.
    """

    def __init__(self, deployed: DeployedNet) -> None:
        super().__init__(deployed.graph, deployed.stored)
        quantizers = {node["name"]: node for node in self.nodes if node["op"] == "quantize"}
        self.binary: dict[str, BinaryConv] = {}
        self.thresholds: dict[str, float] = {}
        for node in self.nodes:
            source = quantizers.get(node["inputs"][0])
            if source is not None and _is_binary(node, source):
                self._prepare(node, source)
        if not self.binary:
            raise ConfigError(
                "No convolution of this network has one bit in weights and activations, and nothing runs by XNOR: "
                "train with quant=bnn, xnor or w1a1."
            )
        readers = {name: [node["name"] for node in self.nodes if name in node["inputs"]] for name in quantizers}
        self.packed_by_readers = {
            name for name, node in quantizers.items() if node["by_sign"] and set(readers[name]) <= set(self.binary)
        }

    def _prepare(self, node: Node, source: Node) -> None:
        codes, name = (source["low"], source["high"]), node["name"]
        pad = self.pad_code(node)
        self.binary[name] = BinaryConv(self.codes(node), codes, node["stride"], node["padding"], pad)
        self.thresholds[name] = sum(codes) / 2

    def compute(self, node: Node, *inputs: Tensor) -> Tensor:
        """Where only signs are read, whoever reads them takes them when packing."""
        if node["name"] in self.packed_by_readers:
            return inputs[0]
        if node["name"] not in self.binary:
            return super().compute(node, *inputs)
        x, *raw = inputs
        sums, bias = self.binary[node["name"]](x, self.thresholds[node["name"]]), self.held(node, "summed_bias")
        if bias is not None:
            sums.add_(bias.to(torch.int32).view(-1, 1, 1))
        return behind(self, node, sums, *raw)


def _is_binary(node: Node, source: Node) -> bool:
    return (
        node["op"] == "conv"
        and OPERATIONS["conv"].format(node) != FORMAT_OF_ANY_NETWORK  # windows are square
        and (node["bits"], node["low"], node["high"], node["groups"]) == (1, -1, 1, 1)
        and source["bits"] == 1
        and (source["low"], source["high"]) in CODES
        and not (node["weight_zero_point"] or source["zero_point"])
    )
