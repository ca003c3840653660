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
from repq_cli.files import make_folder, write_atomically

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


class RunCheckpoints:
    """The checkpoints of one run.

    last.pt      all that is needed to go on; previous.pt is the one before, in case last.pt is lost
    fp.pt        the FP net with the best validation score, from which QAT starts
    best.pt      the quantization-aware net with the best validation score
    """

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir / "checkpoints"
        self.last, self.previous = self.folder / "last.pt", self.folder / "previous.pt"
        self.best, self.fp = self.folder / "best.pt", self.folder / "fp.pt"

    def create(self) -> None:
        """Make the folder."""
        make_folder(self.folder)

    def save_last(self, content: dict[str, Any]) -> None:
        """Write last.pt; the one before becomes previous.pt."""
        if self.last.exists():
            os.replace(self.last, self.previous)
        save(self.last, content)

    def load_last(self) -> dict[str, Any] | None:
        """The newest checkpoint that can be read, or None where the run was stopped before its first."""
        found = [path for path in (self.last, self.previous) if path.exists()]
        for path in found[:-1]:
            try:
                return load(path)
            except DataError:
                continue
        return load(found[-1]) if found else None


def fp_checkpoint(path: str) -> Path:
    """The file that ``fp.checkpoint`` means: a run folder's fp.pt, or the file itself."""
    given = Path(path)
    return RunCheckpoints(given).fp if given.is_dir() else given
