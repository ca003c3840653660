"""The networks that one run leads to, from the training graph to integers, as things to time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from repq_cli.deploy.freeze import freeze
from repq_cli.deploy.network import DeployedNet
from repq_cli.deploy.onnx_form import Form
from repq_cli.deploy.onnx_graph import to_onnx
from repq_cli.deploy.onnx_kernels import kernels
from repq_cli.deploy.onnx_run import OnnxNet
from repq_cli.errors import CheckError, ConfigError
from repq_cli.extras import installing
from repq_cli.modes.compose import merge_blocks
from repq_cli.reparam.block import Block

TORCH, RUNTIME, XNOR = "torch", "onnxruntime", "xnor"
MERGED, INT8, BINARY = "merged", "int8", "binary"
DIFFERENCE = 1e-3  # of a merged network's outputs, relative to the largest


@dataclass(frozen=True, eq=False)
class Candidate:
    """One network by one engine.

    is_float: its answers are those of the FP net, else of the deployed one. proven: that is known of them.
    """

    net: str
    engine: str
    run: Callable[[Tensor], Tensor]
    is_float: bool
    proven: bool = True


def candidates(
    fp: nn.Module, deployed: DeployedNet, threads: int, exported: str | None
) -> tuple[list[Candidate], list[str]]:
    """The training graph and the merged net in torch, the merged one in ONNX Runtime, then integers; and notes.

    fp: the FP stage's net in eval mode. deployed: the run's, for images of the shape to measure. exported: the biases
    of the proven ONNX file, None where there is none.
    """
    keys = ("task", "input_shape", "classes")
    description = {key: deployed.graph[key] for key in keys if key in deployed.graph}
    merged = freeze(merge_blocks(fp), description)
    found = [
        Candidate(_training_graph(fp), TORCH, fp, True),
        Candidate(MERGED, TORCH, merged, True),
        Candidate(MERGED, RUNTIME, _in_runtime(merged, threads), True),
    ]
    notes = []
    quantizers = [node for node in deployed.nodes if node["op"] == "quantize"]
    try:
        if not quantizers:
            raise ConfigError("activations are floating-point numbers")
        content = to_onnx(deployed, Form(exported == "float")).SerializeToString()
        int8 = OnnxNet(content, deployed.halo, threads)
        found.append(Candidate(INT8, RUNTIME, int8, False, exported is not None))
        notes.append(f"int8: ONNX Runtime runs {kernels(content)}.")
        if exported is None:
            notes.append("int8: with biases of int32, whose answers nothing has proven yet; repq export does.")
        elif exported == "float":
            notes.append("int8: with unrounded biases, as the run's exported file, and so in floating point.")
    except ConfigError as error:
        notes.append(f"There is no int8 network: {error}".rstrip(".") + ".")
    if any(node["bits"] == 1 for node in quantizers):
        notes += _add_binary(deployed, found)
    return found, notes


def _training_graph(fp: nn.Module) -> str:
    """What the network before merging is called."""
    branches = max((len(module.branches) for module in fp.modules() if isinstance(module, Block)), default=0)
    return "multi-branch" if branches > 1 else "unfolded"


def _in_runtime(net: DeployedNet, threads: int) -> OnnxNet:
    return OnnxNet(to_onnx(net).SerializeToString(), net.halo, threads)


def exported_biases(file: Path, deployed: DeployedNet) -> str | None:
    """The biases of the ONNX file that was made of this network and proven; None where there is no such file."""
    if not file.is_file():
        return None
    about = OnnxNet(file, deployed.halo, 1).about
    return about.get("biases") if about.get("deployed") == deployed.digest() else None


def _add_binary(deployed: DeployedNet, found: list[Candidate]) -> list[str]:
    try:
        from repq_cli.deploy.xnor_net import XnorNet
    except ImportError:
        return [f"The binary kernel is left out: it needs {installing('xnor')}."]
    with suppress(ConfigError):  # one bit in activations alone
        found.append(Candidate(BINARY, XNOR, XnorNet(deployed), False))
    return []


@torch.inference_mode()
def check_equal(nets: list[Candidate], x: Tensor) -> None:
    """CheckError if floating-point networks differ, of which only the order of sums may do so."""
    reference, *others = [candidate for candidate in nets if candidate.is_float]
    expected = reference.run(x)
    for candidate in others:
        difference = ((candidate.run(x) - expected).abs().max() / expected.abs().max()).item()
        if not difference <= DIFFERENCE:
            raise CheckError(
                f"The {candidate.net} net in {candidate.engine} is not the {reference.net} one: outputs differ by "
                f"{difference:.2g} of the largest, more than {DIFFERENCE:g}; times of it would mean nothing."
            )
