"""The deployed network with its binary convolutions on packed words. Needs the extra ``xnor``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from repq_cli.deploy.int8_conv import Int8Conv, int8_conv
from repq_cli.deploy.network import DeployedNet
from repq_cli.deploy.operations import OPERATIONS
from repq_cli.deploy.operations.base import Node
from repq_cli.deploy.operations.layers import Conv, behind, padded
from repq_cli.deploy.xnor import BinaryConv, flipped, pack, pooled, unpacked
from repq_cli.deploy.xnor_chain import Chain, chain_to, is_binary, is_of_two_codes, require_binary, thresholds
from repq_cli.deploy.xnor_kernels import Words
from repq_cli.quant.sums import weighted_sums

CONV = Conv()


class Signs(NamedTuple):
    """A map of two codes, packed: what quantizers of one bit give."""

    words: Words
    channels: int
    codes: tuple[int, int]


class Threshold(NamedTuple):
    """How a quantizer's codes are found of a convolution's sums, without anything in between."""

    chain: Chain
    least: Tensor
    flips: Tensor
    flipped: Any  # the same, as bytes


class XnorNet(DeployedNet):
    """As ``DeployedNet``; convolutions whose weights and activations have one bit run by XNOR and popcount.

    Their sums are integers and exact; where signs are taken of them, thresholds stand in place of batch norms,
    activation functions and shortcuts (``xnor_chain.py``), and maps stay packed. All else is floating point as there.
    One thread counts bits, however many torch uses elsewhere. Raises ConfigError for a network that has no such
    convolution.
    """

    def __init__(self, deployed: DeployedNet) -> None:
        super().__init__(deployed.graph, deployed.stored)
        require_binary(self)
        self.binary = {node["name"]: self._layer(node) for node in self.nodes if is_binary(node, self.quantizers)}
        packed = {node["inputs"][0] for node in self.nodes if node["name"] in self.binary}
        self.packed = {name for name in packed if is_of_two_codes(self.quantizers[name])}
        self.thresholds: dict[str, Threshold] = {}
        for name in self.packed:
            chain = chain_to(self, self.quantizers[name])
            if chain is not None and (chain.choice is None or chain.choice in self.packed):
                least, flips = thresholds(self, chain, self.quantizers[name])
                self.thresholds[name] = Threshold(chain, least, flips, flipped(flips))
        chains = [threshold.chain for threshold in self.thresholds.values()]
        layers = [chain.layer for chain in chains if chain.layer["name"] not in self.binary]
        self.wide = {node["name"]: self._wide(node) for node in layers}
        self.absorbed = {node["name"] for chain in chains for node in (chain.layer, *chain.between)}

    def _layer(self, node: Node) -> BinaryConv:
        source = self.quantizers[node["inputs"][0]]
        codes, pad = (source["low"], source["high"]), self.pad_code(node)
        return BinaryConv(self.codes(node), codes, node["stride"], node["padding"], pad, node["groups"])

    def run(self, x: Tensor) -> dict[str, Any]:
        """Every node's output by name, but of those in whose place a threshold stands; packed ones as ``Signs``."""
        outputs: dict[str, Any] = {self.graph["input"]: x}
        for node in self.nodes:
            name = node["name"]
            if name in self.packed:
                outputs[name] = self._signs(node, outputs)
            elif name in self.binary and name not in self.absorbed:
                outputs[name] = self._sums(node, outputs)
            elif name not in self.absorbed:
                outputs[name] = self.compute(node, *self.inputs(node, outputs))
        return outputs

    def inputs(self, node: Node, outputs: Mapping[str, Any]) -> list[Tensor]:
        """As there, of maps that are packed or not."""
        read = {name: outputs[name] for name in node["inputs"]}
        codes = {name: unpacked(*value) if isinstance(value, Signs) else value for name, value in read.items()}
        return super().inputs(node, codes)

    def _sums(self, node: Node, outputs: Mapping[str, Any]) -> Tensor:
        """What a binary convolution gives where more than signs are taken of it."""
        first, *others = node["inputs"]
        sums, bias = self.binary[node["name"]].sums(outputs[first].words), self.held(node, "summed_bias")
        if bias is not None:
            sums.add_(bias.to(torch.int32).view(-1, 1, 1))
        return behind(self, node, sums, *(self.value(name, outputs) for name in others))

    def _signs(self, node: Node, outputs: Mapping[str, Any]) -> Signs:
        """A quantizer's codes, of the sums that it can be decided by, or of numbers."""
        codes, threshold = (node["low"], node["high"]), self.thresholds.get(node["name"])
        if threshold is None:
            (x,) = self.inputs(node, outputs)
            if not node["by_sign"]:
                return Signs(pack(OPERATIONS["quantize"].compute(self, node, x), sum(codes) / 2), x.shape[1], codes)
            return Signs(pack(x, 0.0), x.shape[1], codes)
        words = self._decided(threshold, outputs)
        pool = threshold.chain.pool
        if pool is not None:
            words = pooled(words, pool["size"], pool["stride"], pool["padding"])
        return Signs(words, len(threshold.flips), codes)

    def _decided(self, by: Threshold, outputs: Mapping[str, Any]) -> Words:
        """The codes of a layer's sums."""
        layer, choice = by.chain.layer, None if by.chain.choice is None else outputs[by.chain.choice].words
        kernel = self.binary.get(layer["name"])
        if kernel is not None and kernel.groups == 1:
            return kernel.sums_at_least(outputs[layer["inputs"][0]].words, by.least, by.flipped, choice)
        if kernel is not None:
            sums = kernel.sums(outputs[layer["inputs"][0]].words)
        else:
            sums = self._wide_sums(layer, *self.inputs(layer, outputs))
        without, *with_choice = (pack(sums, least, by.flips) for least in by.least)
        return without if choice is None else (without & ~choice) | (with_choice[0] & choice)

    def _wide_sums(self, node: Node, x: Tensor) -> Tensor:
        """A convolution's sums of wider codes."""
        if (kernel := self.wide[node["name"]]) is not None:
            return kernel(x)
        weight = self.held(node, "weight")
        assert weight is not None
        x, padding = padded(x.contiguous(memory_format=torch.channels_last), node["padding"], self._pad(node))
        return weighted_sums(x, weight, None, CONV.window(node, padding))

    def _wide(self, node: Node) -> Int8Conv | None:
        """The kernel of a convolution of wider codes, if there is one."""
        weight, source = self.held(node, "weight"), self.quantizers[node["inputs"][0]]
        assert weight is not None
        zero = int(self.stored[source["zero_point"]]) if source["zero_point"] else 0
        window = None if self._pad(node) else CONV.window(node, node["padding"])
        return None if window is None else int8_conv(weight, window, source["low"] - zero, source["high"] - zero)

    def _pad(self, node: Node) -> int:
        """The code around a convolution's input, if it is not zero."""
        return self.pad_code(node) if node["pad_value"] and node["padding"] else 0
