"""An ONNX file in ONNX Runtime, as a network of torch. Needs the extra ``export``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn

from repq_cli.answers import leaves
from repq_cli.deploy.outputs import is_legal, made
from repq_cli.errors import DataError
from repq_cli.sealed import ONNX_MARK, has_seal


class OnnxNet(nn.Module):
    """Runs a file, or its contents, on the CPU. halo: as ``DeployedNet.halo``. about: the file's metadata.

    Raises DataError for what ONNX Runtime cannot load, and for a file of ours that is not as it was written.
    """

    def __init__(self, file: Path | bytes, halo: int, threads: int | None = None) -> None:
        super().__init__()
        options = session_options(threads or torch.get_num_threads())
        if isinstance(file, Path):
            try:
                has_seal(file, ONNX_MARK)
            except (OSError, ValueError) as error:
                raise DataError(f"{file} is damaged ({error}): make it again by repq export.") from error
        source = file if isinstance(file, bytes) else str(file)
        try:
            self.session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime has an exception of its own for every kind of damage
            name = "The graph" if isinstance(file, bytes) else str(file)
            raise DataError(f"{name} cannot be run by ONNX Runtime: {error}") from error
        self.about: dict[str, str] = self.session.get_modelmeta().custom_metadata_map
        self.halo, self.file = halo, "The graph" if isinstance(file, bytes) else str(file)
        self.names = [output.name for output in self.session.get_outputs()]
        self.sources = [source.name for source in self.session.get_inputs()]
        try:
            self.output = json.loads(self.about["outputs"]) if "outputs" in self.about else self.names[0]
        except (ValueError, RecursionError):
            self.output = None
        if len(self.sources) != 1 or not is_legal(self.output) or not set(leaves(self.output)) <= set(self.names):
            raise DataError(f"{self.file} has not the input and outputs of a network: make it again by repq export.")

    def forward(self, x: Tensor) -> Any:
        try:
            answers = self.session.run(self.names, {self.sources[0]: x.cpu().contiguous().numpy()})
        except Exception as error:  # as above: of a file that somebody sent
            said = str(error).partition("\n")[0]
            raise DataError(f"{self.file} cannot be run on {list(x.shape)} by ONNX Runtime: {said}") from error
        found = dict(zip(self.names, map(torch.from_numpy, answers), strict=True))
        return made(self.output, found.__getitem__)


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """Those that give the integers of the file on every processor."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = threads
    if not fast_int8():  # products of uint8 and int8 are then formed without the sums that saturate
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def fast_int8() -> bool:
    """Whether this processor sums products of int8 in 32 bits (VNNI, or none of x86's kind).

    Without VNNI, x86's instruction adds two products of uint8 and int8 in 16 bits and saturates.
    """
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return True
    return "vnni" in flags or "avx2" not in flags
