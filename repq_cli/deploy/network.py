"""The deployed network itself: a small graph of operations on stored tensors. Needs torch and two files, no more."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.func import functional_call

from repq_cli.deploy.graph import check, check_sizes
from repq_cli.deploy.operations import OPERATIONS
from repq_cli.deploy.operations.base import FORMATS, Node
from repq_cli.deploy.outputs import made
from repq_cli.deploy.packing import unpack
from repq_cli.errors import CheckError, DataError
from repq_cli.files import make_folder, write_atomically, write_json
from repq_cli.quant.windows import pair

TENSORS, GRAPH = "model.safetensors", "model.json"


class DeployedNet(nn.Module):
    """Runs a graph: quantize activations to codes, convolve codes, scale the sums, add biases.

    Sums of codes are exact in float32 up to 2**24, and zero where they are zero: no rounding decides a sign.
    ``graph["nodes"]``: operations in order, each with its ``name``, ``op``, ``inputs`` and the names of its tensors.
    ``stored``: those tensors as they are in the file, weights as packed codes.
    """

    def __init__(self, graph: dict[str, Any], stored: dict[str, Tensor]) -> None:
        super().__init__()
        self.graph, self.stored = graph, stored
        self._sizes: dict[str, list[int]] | None = None  # once they are known: a graph stays as it is
        self.nodes: list[Node] = graph["nodes"]
        self.quantizers = {node["name"]: node for node in self.nodes if node["op"] == "quantize"}
        self.on_codes = {
            node["name"] for node in self.nodes if node.get("weight_step") and node["inputs"][0] in self.quantizers
        }
        for node in self.nodes:
            OPERATIONS[node["op"]].hold(self, node)

    @property
    def dtype(self) -> torch.dtype:
        """Of its floating-point numbers."""
        return next((held.dtype for held in self.buffers() if held.is_floating_point()), torch.float32)

    @property
    def halo(self) -> int:
        """How many input pixels away an output pixel looks, for a chain of convolutions of stride 1."""
        return sum(_reach(node) for node in self.nodes if node["op"] == "conv")

    def hold(self, node: Node, key: str, tensor: Tensor) -> None:
        """Keep a tensor that a node computes with."""
        self.register_buffer(f"{node['name']}__{key}", tensor, persistent=False)

    def held(self, node: Node, key: str) -> Tensor | None:
        """One of the tensors that a node computes with, if it has it."""
        return getattr(self, f"{node['name']}__{key}", None)

    def codes(self, node: Node) -> Tensor:
        """The integer codes of a node's weight as read from the file; CheckError if one is out of range.

        ``identity``: those of the taps of a split identity, one for each output channel, which have 8 bits.
        """
        codes = unpack(self.stored[node["weight"]], node["bits"], node["low"], node["shape"])
        if codes.max() > node["high"] or codes.min() < node["low"]:
            raise CheckError(
                f"The layer {node['name']} stores codes outside {node['low']}..{node['high']}: the file is damaged; "
                f"freeze the run again."
            )
        if node.get("identity"):
            outputs, inputs, size, _ = node["shape"]
            channel = torch.arange(outputs)
            codes[channel, channel % inputs, size // 2, size // 2] = self.stored[node["identity"]].to(codes.dtype)
        return codes

    def forward(self, x: Tensor) -> Any:
        """What the description's ``output`` says: a tensor, or lists and dicts of them."""
        return self.answer(self.run(x))

    def answer(self, outputs: Mapping[str, Tensor]) -> Any:
        """What the network gives, of every node's output."""
        return made(self.graph["output"], lambda name: self.value(name, outputs))

    def run(self, x: Tensor) -> dict[str, Tensor]:
        """Every node's output by name, codes counted from zero."""
        outputs = {self.graph["input"]: x}
        for node in self.nodes:
            outputs[node["name"]] = self.compute(node, *self.inputs(node, outputs))
        return outputs

    def compute(self, node: Node, *inputs: Tensor) -> Tensor:
        """One node."""
        return OPERATIONS[node["op"]].compute(self, node, *inputs)

    def inputs(self, node: Node, outputs: Mapping[str, Tensor]) -> list[Tensor]:
        """What a node reads: codes where it sums them, otherwise what they are worth."""
        first, *others = node["inputs"]
        read = outputs[first] if node["name"] in self.on_codes else self.value(first, outputs)
        return [read, *(self.value(name, outputs) for name in others)]

    def value(self, name: str, outputs: Mapping[str, Tensor]) -> Tensor:
        """A node's output in numbers: codes times their step."""
        step = self.held(self.quantizers[name], "step") if name in self.quantizers else None
        return outputs[name] if step is None else outputs[name] * step

    def pad_code(self, node: Node) -> int:
        """The code of a layer's padding."""
        return round(node["pad_value"] / self.stored[self.quantizers[node["inputs"][0]]["step"]].item())

    def sizes(self) -> dict[str, list[int]]:
        """Of every node's output for one image, without a number of it. Raises what torch raises if two do not fit."""
        if self._sizes is None:
            found = {self.graph["input"]: [1, *self.graph["input_shape"]]}
            for node in self.nodes:
                given = (found[name] for name in node["inputs"])
                found[node["name"]] = OPERATIONS[node["op"]].size(self, node, *given)
            self._sizes = found
        return self._sizes

    @torch.no_grad()
    def size_by_torch(self, node: Node, *given: list[int]) -> list[int]:
        """That of a node's output, given those of its inputs."""
        one, start = _OneNode(self, node), f"net.{node['name']}__"
        held = {name: tensor.to("meta") for name, tensor in one.named_buffers() if name.startswith(start)}
        inputs = tuple(torch.empty(size, device="meta", dtype=self.dtype) for size in given)
        return list(functional_call(one, held, inputs).shape)

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
        """Read what ``save`` wrote; DataError if a file is missing, broken or changed, or cannot be run."""
        text, tensors = _content(folder / GRAPH), _content(folder / TENSORS)
        try:
            graph = json.loads(text, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{folder / GRAPH} is no JSON ({error}): freeze the run again.") from error
        if not isinstance(graph, dict) or not isinstance(graph.get("nodes"), list):
            raise DataError(f"{folder / GRAPH} describes no network: freeze the run again.")
        if graph.get("format") not in FORMATS:
            raise DataError(
                f"{folder / GRAPH} has format {str(graph.get('format'))[:50]}, and this version of repq reads "
                f"{', '.join(map(str, FORMATS[:-1]))} and {FORMATS[-1]}: use the "
                f"version that wrote it (env.json of its run names it), or train the run again."
            )
        if graph.pop("sha256", None) != _digest(graph, tensors):  # before anything is made of them
            raise DataError(f"{folder}: {GRAPH} and {TENSORS} are not what was frozen together: freeze the run again.")
        try:
            # Copies, because the file's own memory is not aligned as torch's is, and convolutions and matrix products
            # choose their order of summation by alignment.
            stored = {name: tensor.clone() for name, tensor in load(tensors).items()}
            check(graph, stored)
            net = cls(graph, stored).eval()
            check_sizes(net.sizes())
        except CheckError:
            raise
        except Exception as error:  # safetensors has an exception class of its own for every kind of damage
            said = str(error).partition("\n")[0]
            raise DataError(f"{folder} holds no network that can be run ({said}): freeze the run again.") from error
        return net


def _reach(node: Node) -> int:
    """How many pixels away a convolution looks."""
    sizes = zip(node["shape"][2:], pair(node.get("dilation", 1)), strict=True)
    return max(size // 2 * dilation for size, dilation in sizes)


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise DataError(f"{path} is no file: a deployed network is {GRAPH} and {TENSORS}; freeze the run again.")
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): mend it, or freeze the run again.") from error


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


class _OneNode(nn.Module):
    def __init__(self, net: DeployedNet, node: Node) -> None:
        super().__init__()
        self.net, self.node = net, node

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.net.compute(self.node, *inputs)


def _digest(graph: dict[str, Any], tensors: bytes) -> str:
    """Of both files' contents, so that neither can be changed or exchanged alone."""
    text = json.dumps({key: value for key, value in graph.items() if key != "sha256"}, sort_keys=True)
    return hashlib.sha256(text.encode() + b"\0" + tensors).hexdigest()


def size_on_disk(folder: Path) -> int:
    """Bytes of the deployed network's files."""
    return sum((folder / name).stat().st_size for name in (TENSORS, GRAPH))
