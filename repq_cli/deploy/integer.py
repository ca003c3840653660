"""The deployed network in integers alone: codes in, int32 sums, fixed-point multipliers, codes out.

Between the first and the last code there is no floating-point number (arXiv 1712.05877, section 2.2). Every tensor is
integers with a scale: codes without their zero-point with the quantizer's step, sums with one scale per channel. How a
sum becomes codes is decided once, when the network is made; so is whether an int32 could overflow.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from repq_cli.answers import leaves
from repq_cli.deploy.fixed_point import per_channel
from repq_cli.deploy.integer_scales import Scaled
from repq_cli.deploy.network import DeployedNet
from repq_cli.deploy.operations import OPERATIONS
from repq_cli.deploy.operations.base import Constants, Node
from repq_cli.deploy.outputs import made
from repq_cli.errors import ConfigError


class IntegerNet(nn.Module):
    """``DeployedNet`` in integers; from float images to float answers, which are the last integers times their scale.

    Raises ConfigError for a network that keeps floating-point numbers inside (float layers, ``quant.residual=fp``,
    XNOR-Net's K), CheckError, with the layer, where an int32 could overflow.
    """

    def __init__(self, deployed: DeployedNet) -> None:
        super().__init__()
        self.deployed = deployed
        self.graph, self.nodes = deployed.graph, deployed.nodes
        self.constants: dict[str, Constants] = {}
        _refuse_raw_shortcuts(self.nodes)
        self.known: dict[str, Scaled | None] = {self.graph["input"]: None}  # None: still floating point
        for node in self.nodes:
            self.constants[node["name"]], self.known[node["name"]] = self._prepared(node)

    def _prepared(self, node: Node) -> tuple[Constants, Scaled | None]:
        """A node's integer constants and what is known of its output."""
        inputs = [self.known[name] for name in node["inputs"]]
        known = [given for given in inputs if given is not None]
        if not known and "weight" not in node and node["op"] != "quantize":
            return {}, None  # in front of the first codes
        if len(known) < len(inputs) and node["op"] != "quantize":
            why = "activations are not quantized" if "weight" in node else "shortcuts read them with quant.residual=fp"
            fix = "quantize them" if "weight" in node else "train with quant.residual=int"
            raise ConfigError(f"The layer {node['name']} reads floating-point numbers, since {why}: {fix}.")
        return OPERATIONS[node["op"]].scales(node, known, self)

    def only_quantizers_read(self, name: str) -> bool:
        """Whether whoever reads a node's output quantizes it, and somebody does."""
        readers = [node["op"] == "quantize" for node in self.nodes if name in node["inputs"]]
        return bool(readers) and all(readers) and name not in leaves(self.graph["output"])

    @functools.cached_property
    def sizes(self) -> dict[str, list[int]]:
        """Of every node's output for one image."""
        return self.deployed.sizes()

    def next_steps(self, name: str) -> list[float]:
        """The steps of the quantizers that a node's output reaches; none for an answer, where only signs matter, or
        where a function in between makes other numbers of it.
        """
        found = list(self._next_steps(name))
        return [] if None in found else [step for step in found if step is not None]

    def _next_steps(self, name: str) -> Iterator[float | None]:
        for node in self.nodes:
            if name in node["inputs"] and node["op"] == "quantize":
                yield from [] if node["by_sign"] else [float(self.deployed.stored[node["step"]])]
            elif name in node["inputs"]:
                yield from self._next_steps(node["name"]) if OPERATIONS[node["op"]].keeps_numbers else [None]

    def forward(self, x: Tensor) -> Any:
        """As ``DeployedNet``'s."""
        outputs = self.run(x)
        return made(self.graph["output"], lambda name: self._worth(name, outputs[name]))

    def _worth(self, name: str, integers: Tensor) -> Tensor:
        known = self.known[name]
        if known is None:  # behind the last codes
            return integers
        return integers.float() * per_channel(known.scale.float(), integers)

    @property
    def halo(self) -> int:
        """As ``DeployedNet.halo``."""
        return self.deployed.halo

    @torch.no_grad()
    def run(self, x: Tensor, reference: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Every node's integers (``int32`` by value) by name.

        With the ``reference`` outputs of the floating-point executor each layer is given the reference's codes, so that
        differences do not add up: those between the results and the reference are one layer's own.
        """
        values, fed = {self.graph["input"]: x}, {self.graph["input"]: x}
        for node in self.nodes:
            name = node["name"]
            values[name] = self.computed(node, fed)
            fed[name] = values[name]
            if reference is not None and node["op"] == "quantize":
                fed[name] = reference[name].to(torch.int32)
        return values

    def computed(self, node: Node, values: Mapping[str, Tensor]) -> Tensor:
        """A node's integers. values: of all nodes before it."""
        inputs = [values[name] for name in node["inputs"]]
        if inputs[0].is_floating_point():  # the image, or what is made of it in front of the first codes
            y = self.deployed.compute(node, *inputs)
            return y.to(torch.int32) if node["op"] == "quantize" else y
        return OPERATIONS[node["op"]].integers(self, node, self.constants[node["name"]], *inputs)


def _refuse_raw_shortcuts(nodes: list[Node]) -> None:
    """ConfigError where something reads a tensor before its quantizer."""
    quantized = {node["inputs"][0] for node in nodes if node["op"] == "quantize"}
    for node in nodes:
        if node["op"] == "add" and quantized & set(node["inputs"]):
            raise ConfigError(
                f"{node['name']} adds a tensor before its quantizer, as quant.residual=fp trains it: that sum has no "
                f"integers; train with quant.residual=int."
            )
