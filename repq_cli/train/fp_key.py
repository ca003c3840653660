"""The identity of an FP stage: everything that determines its result."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from importlib import metadata
from pathlib import Path
from typing import Any

from repq_cli.modes.catalogue import used_rep

PACKAGE = Path(__file__).resolve().parents[1]
SOURCES = (
    "reparam",
    "models",
    "data",
    "images",
    "tasks",
    "batch_norm.py",
    "seeds.py",
    "train/engine.py",
    "train/stage.py",
    "train/optim.py",
)
PLACES = ("root", "download", "workers", "cache_mib", "test", "test_lr")  # where data comes from, not what it is
NOT_TRAINED = ("checkpoint", "format", "weights", "head", "input", "reuse")  # of fp: where weights come from instead
SECTIONS = ("model", "data", "task", "psnr_rounding", "optim", "schedule", "seed")


def fp_key(config: dict[str, Any], data_fingerprint: str = "") -> str:
    """A hash of the FP stage's part of a configuration, of the data's files, and of the sources that carry it out.

    Modes and bits share it, but for modes that use no branches.
    """
    parts: dict[str, Any] = {key: config[key] for key in SECTIONS}
    if _is_ours(config["data"]):
        parts["data"] = {key: value for key, value in config["data"].items() if key not in PLACES}
    parts["rep"] = used_rep(config)
    parts["fp"] = {key: value for key, value in config["fp"].items() if key not in NOT_TRAINED}
    digest = hashlib.sha256(json.dumps([parts, data_fingerprint, metadata.version("torch")], sort_keys=True).encode())
    for path in sorted(_source_files()):
        digest.update(path.relative_to(PACKAGE).as_posix().encode() + b"\0" + path.read_bytes())
    for section in ("model", "rep", "data"):
        if not _is_ours(config[section]):
            digest.update(_plugin_source(config[section]["_target_"]))
    return digest.hexdigest()[:16]


def _is_ours(section: dict[str, Any]) -> bool:
    return str(section["_target_"]).startswith("repq_cli.")


def _plugin_source(target: str) -> bytes:
    """The module of a plugin's function; what that imports is not followed."""
    spec = importlib.util.find_spec(target.rpartition(".")[0])
    return Path(spec.origin).read_bytes() if spec is not None and spec.origin is not None else b""


def _source_files() -> list[Path]:
    found = []
    for name in SOURCES:
        path = PACKAGE / name
        found += [path] if path.is_file() else list(path.glob("*.py"))
    return found
