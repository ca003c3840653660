"""What ONNX Runtime makes of each layer of an exported network when it is given the reference's codes."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from torch import Tensor

from repq_cli.answers import tensors
from repq_cli.deploy.network import DeployedNet
from repq_cli.deploy.onnx_run import session_options


class Layers(NamedTuple):
    """``lsb``: the largest difference of codes of any layer; ``share``: of all codes, those that differ.

    outputs: the largest difference of the answers, relative to the largest of them.
    """

    lsb: int
    share: float
    outputs: float


def layers_in_onnx(path: Path, deployed: DeployedNet, x: Tensor) -> Layers:
    """As ``compare_integers``: whatever reads codes reads those of the floating-point executor, so that differences do
    not add up.
    """
    model = onnx.load(path)
    graph, reference = model.graph, deployed.run(x)
    zeros = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer if "zero_point" in tensor.name}
    made = {output for node in graph.node for output in node.output}
    answers, feeds = [output.name for output in graph.output], {graph.input[0].name: x.numpy()}
    wanted = {}
    for name in deployed.quantizers:
        codes = next((key for key in (f"{name}.clipped", f"{name}.codes") if key in made), None)
        if codes is None:  # put together with the stem's
            continue
        zero, given = zeros[f"{name}.zero_point"], f"{name}.given"
        for node in graph.node:
            node.input[:] = [given if source == codes else source for source in node.input]
        kind = onnx.helper.np_dtype_to_tensor_dtype(zero.dtype)
        graph.input.append(onnx.helper.make_tensor_value_info(given, kind, None))
        graph.output.append(onnx.helper.make_tensor_value_info(codes, kind, None))
        wanted[codes] = feeds[given] = (reference[name].numpy() + zero).astype(zero.dtype)
    source, options = model.SerializeToString(), session_options(1)
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    found = session.run([*answers, *wanted], feeds)
    pairs = zip(found[len(answers) :], wanted.values(), strict=True)
    off = torch.cat([torch.from_numpy(a.astype(int) - b.astype(int)).flatten().abs() for a, b in pairs])
    expected = tensors(deployed.answer(reference))
    outputs = max(
        ((torch.from_numpy(a) - b).abs().max() / b.abs().max().clamp(min=1e-9)).item()
        for a, b in zip(found, expected, strict=False)
    )
    return Layers(int(off.max()), (off > 0).double().mean().item(), outputs)
