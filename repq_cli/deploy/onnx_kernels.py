"""What ONNX Runtime makes of a graph on this machine: which operations it runs on codes and which in floating point.

Whether a layer between quantizers becomes one kernel of integers is the runtime's decision, so its own optimised graph
is looked at. Needs the extra ``export``.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import onnx
import onnxruntime

from repq_cli.errors import DataError

LAYERS = ("Conv", "Gemm", "MatMul")  # what the names of layers' kernels hold
CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")
MOVING = ("Transpose", "Reshape", "Flatten", "Identity", "Squeeze", "Unsqueeze")


class Kernels(NamedTuple):
    """How many operations a graph has of each kind.

    layers, integer_layers   convolutions and products with a weight, and those of them that sum codes
    integer, floating        all other operations that compute, on codes and in floating point
    conversions              between codes and numbers
    """

    layers: int
    integer_layers: int
    integer: int
    floating: int
    conversions: int

    def __str__(self) -> str:
        others = f"{self.integer} other operations on codes, {self.floating} in floating point"
        return f"{self.integer_layers} of {self.layers} layers as int8; {others}"


def kernels(model: bytes) -> Kernels:
    """Those of a graph's operations, as this machine's ONNX Runtime optimises it.

    Raises DataError where its own graph, a temporary file, cannot be written.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; that the optimised graph suits this machine alone is its purpose
    with TemporaryDirectory() as folder:
        path = Path(folder, "optimised.onnx")
        options.optimized_model_filepath = str(path)
        try:
            onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            return count_kernels(onnx.load(path).graph)
        except Exception:
            _require_room(path, 2 * len(model))
            raise


def _require_room(path: Path, size: int) -> None:
    """Raise DataError where a file of so many bytes cannot be written: the runtime says that in many ways, or none."""
    try:
        path.write_bytes(bytes(size))
    except OSError as error:
        raise DataError(
            f"{path} cannot be written ({error.strerror}): free some space there, or name another folder for temporary "
            f"files by the environment variable TMPDIR."
        ) from error


def note_kernels(model: onnx.ModelProto) -> Kernels:
    """``kernels``, noted in the model's metadata."""
    found = kernels(model.SerializeToString())
    for key, value in (("runtime", f"onnxruntime {onnxruntime.__version__}"), ("int8", str(found))):
        model.metadata_props.add(key=key, value=value)
    return found


def count_kernels(graph: onnx.GraphProto) -> Kernels:
    """Those of an optimised graph; tensors are codes behind a quantizer, until something makes numbers of them."""
    codes: set[str] = set()
    found: Counter[str] = Counter()
    for node in graph.node:
        of_layer = any(kind in node.op_type for kind in LAYERS)
        # An operation of QLinear is of codes whatever its name's inputs are; others are of what they read first.
        integer = node.op_type.startswith("Q") or (node.op_type != "DequantizeLinear" and node.input[0] in codes)
        codes |= set(node.output) if integer else set()
        if node.op_type in CONVERSIONS:
            found["conversions"] += 1
        elif of_layer:
            found["layers"] += 1
            found["integer_layers"] += integer
        elif node.op_type not in MOVING:
            found["integer" if integer else "floating"] += 1
    return Kernels(*(found[field] for field in Kernels._fields))
