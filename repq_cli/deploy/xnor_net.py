"""The deployed network with its binary convolutions on packed words. Needs the extra ``xnor``."""

from __future__ import annotations

import torch
from torch import Tensor

from repq_cli.deploy.network import DeployedNet, Node
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
        step = self.stored[source["step"]].double()
        pad = round(node["pad_value"] / step.item())
        codes = (source["low"], source["high"])
        name = node["name"]
        self.binary[name] = BinaryConv(self.codes(node), codes, node["stride"], node["padding"], pad)
        self.thresholds[name] = 0.0 if source["by_sign"] else step.item() / 2
        scale = (self.stored[node["weight_step"]].double().flatten() * step).expand(node["shape"][0])
        self._hold(node, "scale", scale.float().view(-1, 1, 1))

    def _quantize(self, node: Node, x: Tensor) -> Tensor:
        """Where only signs are read, whoever reads them takes them when packing."""
        return x if node["name"] in self.packed_by_readers else super()._quantize(node, x)

    def _convolve(self, node: Node, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if node["name"] not in self.binary:
            return super()._convolve(node, x, weight, bias)
        sums = self.binary[node["name"]](x, self.thresholds[node["name"]])
        scale = self._held(node, "scale")
        assert scale is not None
        y = torch.mul(sums, scale, out=sums.view(torch.float32))  # in place: fresh memory would cost as much again
        return y if bias is None else y.add_(bias.view(-1, 1, 1))


def _is_binary(node: Node, source: Node) -> bool:
    return (
        node["op"] == "conv"
        and (node["bits"], node["low"], node["high"], node["groups"]) == (1, -1, 1, 1)
        and source["bits"] == 1
        and (source["low"], source["high"]) in CODES
        and not (node["weight_zero_point"] or source["zero_point"])
    )
