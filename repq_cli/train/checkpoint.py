"""Checkpoints: tensors, numbers, strings, lists and dicts only, written whole or not at all."""

from __future__ import annotations

import argparse
import io
import os
import warnings
from pathlib import Path
from typing import Any

import torch

from repq_cli.errors import DataError
from repq_cli.files import write_atomically
from repq_cli.runs.folder import RunFolder

FORMAT = 1


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint atomically."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **content}, buffer)
    write_atomically(path, buffer.getvalue())


def load_any(path: Path) -> dict[str, Any]:
    """Read a dict that torch saved onto the CPU. Raises DataError if it is missing, truncated or something else."""
    if not path.is_file():
        raise DataError(f"There is no checkpoint {path}: name a run folder or one of its checkpoints/*.pt.")
    try:
        # Published checkpoints hold their script's arguments. Of odd pickles torch warns before it refuses them.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    # torch.load raises whatever the broken bytes happen to trip over: zip, pickle, key or end-of-file errors.
    except Exception as error:
        raise DataError(
            f"The checkpoint {path} is truncated or holds more than tensors: use another one, or save the net's "
            f"state_dict()."
        ) from error
    if not isinstance(content, dict):
        raise DataError(f"The checkpoint {path} is no dict of tensors: use another one.")
    return content


def checked(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """``content`` if it is a checkpoint of ours; DataError otherwise."""
    if content.get("format") != FORMAT or not isinstance(content.get("net", {}), dict):
        raise DataError(f"The checkpoint {path} is not one of repq's (format {FORMAT}): use another one.")
    return content


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ours. Raises DataError if it is missing, truncated or something else."""
    return checked(path, load_any(path))


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
    """The file that ``fp.checkpoint`` means: a run folder's fp.pt, or the file itself."""
    return RunFolder(path).fp if Path(path).is_dir() else Path(path)
