"""The deployed network itself: a small graph of operations on stored tensors. Needs torch and two files, no more."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load, save
from torch import Tensor, nn

from repq_cli.deploy.packing import unpack
from repq_cli.errors import CheckError, DataError
from repq_cli.files import make_folder, write_atomically, write_json

TENSORS, GRAPH = "model.safetensors", "model.json"
FORMAT = 2

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
            if node.get("bias"):
                self._hold(node, "bias", self._bias_value(node))
            for key in ("step", "zero_point", "multiplier", "slope"):
                if node.get(key):
                    self._hold(node, key, stored[node[key]])

    @property
    def halo(self) -> int:
        """How many input pixels away an output pixel looks, for a chain of convolutions of stride 1."""
        return sum(node["shape"][2] // 2 for node in self.nodes if node["op"] == "conv")

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
        step = self.stored[node["weight_step"]]
        codes = self.codes(node).to(step.dtype)
        if node["weight_zero_point"]:
            codes -= self.stored[node["weight_zero_point"]]
        return codes * step

    def _bias_value(self, node: Node) -> Tensor:
        bias = self.stored[node["bias"]]
        if not node["bias_step"]:
            return bias
        step = self.stored[node["bias_step"]]
        return bias.to(step.dtype) * step

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
        step, zero_point = self._held(node, "step"), self._held(node, "zero_point")
        assert step is not None
        if node["by_sign"]:
            return torch.where(x >= 0, node["high"], node["low"]) * step
        codes = (x / step).round()
        if zero_point is None:
            return codes.clamp(node["low"], node["high"]) * step
        return ((codes + zero_point).clamp(node["low"], node["high"]) - zero_point) * step

    def _conv(self, node: Node, x: Tensor, raw: Tensor | None = None) -> Tensor:
        weight = self._held(node, "weight_value")
        assert weight is not None
        if raw is not None:
            y = self._convolve(node, x, weight, None) * self._input_scale(node, raw)
            y = self._multiply_and_add(node, y, 2)
        elif node["multiplier"]:
            y = self._multiply_and_add(node, self._convolve(node, x, weight, None), 2)
        else:
            y = self._convolve(node, x, weight, self._held(node, "bias"))
        return y if node["activation"] == "none" else getattr(self, f"_{node['activation']}")(node, y)

    def _convolve(self, node: Node, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding = node["padding"]
        if node["pad_value"] and padding:
            x, padding = F.pad(x, [padding] * 4, value=node["pad_value"]), 0
        return F.conv2d(x, weight, bias, node["stride"], padding, 1, node["groups"])

    def _input_scale(self, node: Node, raw: Tensor) -> Tensor:
        """The mean magnitude of what each position saw, per group of channels."""
        outputs, inputs, size, _ = node["shape"]
        magnitude = raw.abs().unflatten(1, (node["groups"], inputs)).mean(2)
        scale = F.avg_pool2d(magnitude, size, node["stride"], node["padding"])
        return scale if node["groups"] == 1 else scale.repeat_interleave(outputs // node["groups"], 1)

    def _multiply_and_add(self, node: Node, y: Tensor, trailing: int) -> Tensor:
        """The multiplier of an unfolded batch norm, then the bias, each where there is one."""
        multiplier, bias = self._held(node, "multiplier"), self._held(node, "bias")
        shape = (-1, *[1] * trailing)
        if multiplier is not None:
            y = y * multiplier.view(shape)
        return y if bias is None else y + bias.view(shape)

    def _linear(self, node: Node, x: Tensor) -> Tensor:
        weight = self._held(node, "weight_value")
        assert weight is not None
        if node["multiplier"]:
            return self._multiply_and_add(node, F.linear(x, weight), 0)
        return F.linear(x, weight, self._held(node, "bias"))

    def _global_average_pool(self, node: Node, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, 1)

    def _max_pool(self, node: Node, x: Tensor) -> Tensor:
        return F.max_pool2d(x, node["size"], node["stride"], node["padding"])

    def _relu(self, node: Node, x: Tensor) -> Tensor:
        return F.relu(x)

    def _relu6(self, node: Node, x: Tensor) -> Tensor:
        return F.relu6(x)

    def _hardtanh(self, node: Node, x: Tensor) -> Tensor:
        return F.hardtanh(x)

    def _prelu(self, node: Node, x: Tensor) -> Tensor:
        slope = self._held(node, "slope")
        assert slope is not None
        return F.prelu(x, slope)

    def _pixel_shuffle(self, node: Node, x: Tensor) -> Tensor:
        return F.pixel_shuffle(x, node["scale"])

    def _nearest_upsample(self, node: Node, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=float(node["scale"]), mode="nearest")

    def _add(self, node: Node, x: Tensor, y: Tensor) -> Tensor:
        return x + y

    def _flatten(self, node: Node, x: Tensor) -> Tensor:
        return torch.flatten(x, 1)

    def digest(self) -> str:
        """A checksum of all that it is, which files made of it carry."""
        return _digest(self.graph, save(self.stored))

    def save(self, folder: Path) -> None:
        """Write ``model.safetensors`` and ``model.json``: equal nets give equal bytes."""
        make_folder(folder)
        tensors = save(self.stored)
        write_atomically(folder / TENSORS, tensors)
        write_json(folder / GRAPH, self.graph | {"sha256": _digest(self.graph, tensors)})

    @classmethod
    def load(cls, folder: Path) -> DeployedNet:
        """Read what ``save`` wrote; DataError if a file is missing or broken."""
        try:
            graph = json.loads((folder / GRAPH).read_text())
            tensors = (folder / TENSORS).read_bytes()
            # Copies, because the file's own memory is not aligned as torch's is, and convolutions and matrix products
            # choose their order of summation by alignment.
            stored = {name: tensor.clone() for name, tensor in load(tensors).items()}
        except Exception as error:  # safetensors has an exception class of its own for every kind of damage
            raise DataError(f"{folder} holds no intact deployed network ({GRAPH}, {TENSORS}): {error}.") from error
        if not isinstance(graph, dict) or not isinstance(graph.get("nodes"), list):
            raise DataError(f"{folder / GRAPH} describes no network: freeze the run again.")
        if graph.get("format") != FORMAT:
            raise DataError(
                f"{folder / GRAPH} has format {graph.get('format')}, and this version of repq reads {FORMAT}: use the "
                f"version that wrote it (env.json of its run names it), or train the run again."
            )
        wanted = graph.pop("sha256", None)  # files of earlier versions have none
        if wanted is not None and wanted != _digest(graph, tensors):
            raise DataError(f"{folder}: {GRAPH} and {TENSORS} are not what was frozen together: freeze the run again.")
        try:
            return cls(graph, stored).eval()
        except (KeyError, TypeError, IndexError, RuntimeError) as error:
            raise DataError(
                f"{folder / GRAPH} and {TENSORS} do not fit together ({error!r}): freeze the run again."
            ) from error


def _digest(graph: dict[str, Any], tensors: bytes) -> str:
    """Of both files' contents, so that neither can be changed or exchanged alone."""
    text = json.dumps({key: value for key, value in graph.items() if key != "sha256"}, sort_keys=True)
    return hashlib.sha256(text.encode() + b"\0" + tensors).hexdigest()


def size_on_disk(folder: Path) -> int:
    """Bytes of the deployed network's files."""
    return sum((folder / name).stat().st_size for name in (TENSORS, GRAPH))
