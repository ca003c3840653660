"""The deployed network itself: a small graph of operations on stored tensors. Needs torch and two files, no more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor, nn

from repq_cli.deploy.packing import unpack
from repq_cli.errors import CheckError, DataError
from repq_cli.files import write_atomically, write_json

TENSORS, GRAPH = "model.safetensors", "model.json"
FORMAT = 1

Node = dict[str, Any]


class DeployedNet(nn.Module):
    """Runs a graph: quantize activations to codes, convolve codes times step, add biases.

    ``graph["nodes"]``: operations in order, each with its ``name``, ``op``, ``inputs`` and the names of its tensors.
    ``stored``: those tensors as they are in the file, weights as packed codes.
    """

    def __init__(self, graph: dict[str, Any], stored: dict[str, Tensor]) -> None:
        super().__init__()
        self.graph, self.stored = graph, stored
        self.nodes: list[Node] = graph["nodes"]
        for node in self.nodes:
            if "weight" in node:
                self._hold(node, "weight_value", self._weight_value(node))
            for key in ("step", "multiplier", "bias"):
                if node.get(key):
                    self._hold(node, key, stored[node[key]])

    def _hold(self, node: Node, key: str, tensor: Tensor) -> None:
        self.register_buffer(f"{node['name']}__{key}", tensor, persistent=False)

    def _held(self, node: Node, key: str) -> Tensor | None:
        return getattr(self, f"{node['name']}__{key}", None)

    def codes(self, node: Node) -> Tensor:
        """The integer codes of a node's weight as read from the file; CheckError if one is out of range."""
        codes = unpack(self.stored[node["weight"]], node["bits"], node["low"], node["shape"])
        if codes.max() > node["high"] or codes.min() < node["low"]:
            raise CheckError(
                f"The layer {node['name']} stores codes outside {node['low']}..{node['high']}: the file is damaged; "
                f"freeze the run again."
            )
        return codes

    def _weight_value(self, node: Node) -> Tensor:
        if node["bits"] == 32:
            return self.stored[node["weight"]]
        return self.codes(node).float() * self.stored[node["weight_step"]]

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)[self.graph["output"]]

    def run(self, x: Tensor) -> dict[str, Tensor]:
        """Every node's output by name."""
        values = {self.graph["input"]: x}
        for node in self.nodes:
            inputs = [values[name] for name in node["inputs"]]
            values[node["name"]] = getattr(self, f"_{node['op']}")(node, *inputs)
        return values

    def _quantize(self, node: Node, x: Tensor) -> Tensor:
        step = self._held(node, "step")
        assert step is not None
        return (x / step).round().clamp(node["low"], node["high"]) * step

    def _conv(self, node: Node, x: Tensor) -> Tensor:
        multiplier, bias = self._held(node, "multiplier"), self._held(node, "bias")
        fused_bias = bias if multiplier is None else None
        weight = self._held(node, "weight_value")
        assert weight is not None
        y = F.conv2d(x, weight, fused_bias, node["stride"], node["padding"], 1, node["groups"])
        if multiplier is not None:
            assert bias is not None
            y = y * multiplier.view(-1, 1, 1) + bias.view(-1, 1, 1)
        return F.relu(y) if node["activation"] == "relu" else y

    def _linear(self, node: Node, x: Tensor) -> Tensor:
        weight = self._held(node, "weight_value")
        assert weight is not None
        return F.linear(x, weight, self._held(node, "bias"))

    def _global_average_pool(self, node: Node, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, 1)

    def _max_pool(self, node: Node, x: Tensor) -> Tensor:
        return F.max_pool2d(x, node["size"], node["stride"], node["padding"])

    def _relu(self, node: Node, x: Tensor) -> Tensor:
        return F.relu(x)

    def _add(self, node: Node, x: Tensor, y: Tensor) -> Tensor:
        return x + y

    def _flatten(self, node: Node, x: Tensor) -> Tensor:
        return torch.flatten(x, 1)

    def save(self, folder: Path) -> None:
        """Write ``model.safetensors`` and ``model.json``: equal nets give equal bytes."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{folder} cannot be made ({error.strerror}): choose another folder.") from error
        write_atomically(folder / TENSORS, save(self.stored))
        write_json(folder / GRAPH, self.graph)

    @classmethod
    def load(cls, folder: Path) -> DeployedNet:
        """Read what ``save`` wrote; DataError if a file is missing or broken."""
        try:
            graph = json.loads((folder / GRAPH).read_text())
            # Copies, because the file's own memory is not aligned as torch's is, and convolutions and matrix products
            # choose their order of summation by alignment.
            stored = {name: tensor.clone() for name, tensor in load_file(folder / TENSORS).items()}
        except Exception as error:  # safetensors has an exception class of its own for every kind of damage
            raise DataError(f"{folder} holds no intact deployed network ({GRAPH}, {TENSORS}): {error}.") from error
        if graph.get("format") != FORMAT:
            raise DataError(f"{folder / GRAPH} has format {graph.get('format')}; this version reads {FORMAT}.")
        return cls(graph, stored).eval()


def size_on_disk(folder: Path) -> int:
    """Bytes of the deployed network's files."""
    return sum((folder / name).stat().st_size for name in (TENSORS, GRAPH))
