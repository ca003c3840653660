"""That integers rounded as ONNX Runtime's kernels are its own, image by image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from repq_cli.answers import tensors
from repq_cli.data.base import Evaluation
from repq_cli.deploy.network import DeployedNet
from repq_cli.errors import CheckError
from repq_cli.extras import extra
from repq_cli.train.engine import EVAL_BATCH


@torch.no_grad()
def runtime_proof(deployed: DeployedNet, integers: Any, sets: Mapping[str, Evaluation], threads: int | None) -> str:
    """That the integers are ONNX Runtime's, number by number, in a sentence. Raises CheckError where they are not."""
    with extra("export"):
        from repq_cli.deploy.onnx_graph import to_onnx
        from repq_cli.deploy.onnx_run import OnnxNet
    shipped, images, others, largest = OnnxNet(to_onnx(deployed).SerializeToString(), deployed.halo, threads), 0, 0, 0.0
    for split in sets.values():
        for x, _ in split.batches(EVAL_BATCH, torch.device("cpu")):
            pairs = zip(tensors(integers(x)), tensors(shipped(x)), strict=True)
            differences = torch.stack([(ours - its).abs().flatten(1).amax(1) for ours, its in pairs]).amax(0)
            images, others = images + len(x), others + int(differences.count_nonzero())
            largest = max(largest, differences.max().item())
    if others:
        raise CheckError(
            f"ONNX Runtime gives other numbers for {others} of {images} images, by up to {largest:.3g}: its kernels "
            f"round otherwise on this processor, or run layers in floating point (repq export says how many)."
        )
    return f"integers against ONNX Runtime: the outputs of {images} of {images} images equal, bit for bit"
