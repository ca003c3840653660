"""repq: re-parameterised networks, trained so that they ship as low-bit integers.

``import repq_cli as repq`` is the door for Python: networks, quantization-aware copies, frozen integers and their
proofs, for a training loop of one's own (docs/library.md). Nothing heavy is imported before a function is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repq_cli import models
    from repq_cli.errors import CheckError, ConfigError, DataError
    from repq_cli.library.explain import explain
    from repq_cli.library.quantize import after_step, freeze_statistics, merge, parameter_groups, prepare
    from repq_cli.library.runs import run
    from repq_cli.library.ship import check, export_onnx, freeze, load
    from repq_cli.quant.options import QuantOptions

__version__ = "0.1.0"

__all__ = [
    "CheckError", "ConfigError", "DataError", "QuantOptions", "after_step", "check", "explain", "export_onnx", "freeze",
    "freeze_statistics", "load", "merge", "models", "parameter_groups", "prepare", "run",
]  # fmt: skip

_HOMES = {
    "errors": ("CheckError", "ConfigError", "DataError"),
    "library.explain": ("explain",),
    "library.quantize": ("after_step", "freeze_statistics", "merge", "parameter_groups", "prepare"),
    "library.runs": ("run",),
    "library.ship": ("check", "export_onnx", "freeze", "load"),
    "quant.options": ("QuantOptions",),
}


def __getattr__(name: str) -> Any:
    if name == "models":
        return importlib.import_module("repq_cli.models")
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"repq_cli.{home}"), name)
    raise AttributeError(f"module 'repq_cli' has no attribute '{name}'; it offers {', '.join(__all__)}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
