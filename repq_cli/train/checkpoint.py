"""Checkpoints: tensors, numbers, strings, lists and dicts only, written whole or not at all."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch

from repq_cli.errors import ConfigError, DataError
from repq_cli.files import write_atomically
from repq_cli.pretrained.read import read
from repq_cli.runs.folder import FP_NET, RunFolder

FORMAT = 1


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint atomically."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **content}, buffer)
    write_atomically(path, buffer.getvalue())


def checked(path: Path, content: object) -> dict[str, Any]:
    """``content`` if it is a checkpoint of ours; DataError otherwise."""
    if not isinstance(content, dict) or content.get("format") != FORMAT or not isinstance(content.get("net", {}), dict):
        raise DataError(f"The checkpoint {path} is not one of repq's (format {FORMAT}): use another one.")
    return content


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ours. Raises DataError if it is missing, truncated or something else."""
    return checked(path, read(path))


def save_last(folder: RunFolder, content: dict[str, Any]) -> None:
    """Write a run's last.pt; the one before becomes previous.pt."""
    if folder.last.exists():
        os.replace(folder.last, folder.previous)
    save(folder.last, content)


def load_last(folder: RunFolder) -> dict[str, Any] | None:
    """The newest checkpoint of a run that can be read, or None where it was stopped before its first."""
    found = [path for path in (folder.last, folder.previous) if path.exists()]
    for path in found[:-1]:
        try:
            return load(path)
        except DataError:
            continue
    return load(found[-1]) if found else None


def fp_checkpoint(path: str) -> Path:
    """The file that ``fp.checkpoint`` means: fp.pt of a run, or of its checkpoints, or the file itself.

    Raises ConfigError for no name.
    """
    if not path:
        raise ConfigError("fp.checkpoint= names nothing: name a run folder or a file of weights, or use null.")
    own = (RunFolder(path).fp, Path(path) / FP_NET)
    return next((file for file in own if os.path.exists(file)), Path(path))  # a name may be too long for pathlib
