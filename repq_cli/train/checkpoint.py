"""Checkpoints: tensors, numbers, strings, lists and dicts only, written whole or not at all, with a seal."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from repq_cli.errors import ConfigError, DataError
from repq_cli.files import PASSING, link, write_atomically
from repq_cli.pretrained.read import read
from repq_cli.runs.folder import FP_NET, RunFolder
from repq_cli.sealed import has_seal, seal
from repq_cli.train.checkpoint_form import TrainedForm, TrainingForm, wrong_in
from repq_cli.train.log import logger

FORMAT = 2  # sealed
FORMAT_WITHOUT_SEAL = 1


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint atomically."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **content}, buffer)
    written = buffer.getbuffer()
    write_atomically(path, written, seal(written))


def checked(path: Path, content: object, sealed: bool | None = None) -> dict[str, Any]:
    """``content``, as ``read`` found it in a file, if it is a checkpoint of ours and its seal fits; else DataError.

    sealed: whether the file has a seal that fits, where that is known.
    """
    if not isinstance(content, dict) or content.get("format") not in (FORMAT, FORMAT_WITHOUT_SEAL):
        raise DataError(f"The checkpoint {path} is not one of repq's (format {FORMAT}): use another one.")
    if content["format"] == FORMAT and not (_has_seal(path) if sealed is None else sealed):
        raise damaged(path, "its seal is gone")
    if (wrong := wrong_in(TrainedForm, content)) is not None:
        raise damaged(path, wrong)
    return content


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ours. Raises DataError if it is missing, damaged or something else."""
    sealed = path.is_file() and _has_seal(path)  # before anything makes sense of damaged bytes
    return checked(path, read(path), sealed)


def load_training(path: Path) -> dict[str, Any]:
    """Read a checkpoint from which training can go on. Raises DataError as ``load``."""
    content = load(path)
    if (wrong := wrong_in(TrainingForm, content)) is not None:
        raise damaged(path, wrong)
    return content


def _has_seal(path: Path) -> bool:
    """Raises OSError where the file may be whole, and only cannot be read now."""
    try:
        return has_seal(path)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in PASSING:
            raise
        raise damaged(path, error) from error


def damaged(path: Path, why: object) -> DataError:
    """What to say of a checkpoint that is none, or not the one that belongs there."""
    return DataError(f"The checkpoint {path} is damaged ({why}).")


def save_last(folder: RunFolder, content: dict[str, Any]) -> None:
    """Write a run's last.pt; the one before becomes previous.pt. At no time is there none."""
    if folder.last.exists():
        link(folder.last, folder.previous)
    save(folder.last, content)


def load_last(folder: RunFolder) -> dict[str, Any] | None:
    """The newest checkpoint of a run that can be read, or None where it was stopped before its first.

    Where last.pt is damaged, previous.pt takes its place, so that no later one is written over what is whole.
    """
    found = [path for path in (folder.last, folder.previous) if os.path.lexists(path)]
    if not found:
        return None
    try:
        return load_training(found[0])
    except DataError as error:
        return load_previous(folder, error)


def load_previous(
    folder: RunFolder, error: DataError, wrong: Callable[[dict[str, Any]], str | None] = lambda content: None
) -> dict[str, Any]:
    """What previous.pt holds, which takes the place of last.pt. Raises DataError, from ``error``, where it is damaged.

    error: what is wrong with last.pt. wrong: what else may be wrong with a content.
    """
    try:
        content = load_training(folder.previous)
        if (why := wrong(content)) is not None:
            raise damaged(folder.previous, why)
    except DataError:
        raise DataError(
            f"{error} No other checkpoint is whole from which the run could go on: restore one, or remove "
            f"{folder.checkpoints} and the run starts over."
        ) from error
    logger.warning("%s Its previous.pt is whole: the run goes on from there.", error)
    link(folder.previous, folder.last)
    return content


def fp_checkpoint(path: str) -> Path:
    """The file that ``fp.checkpoint`` means: fp.pt of a run, or of its checkpoints, or the file itself.

    Raises ConfigError for no name.
    """
    if not path:
        raise ConfigError("fp.checkpoint= names nothing: name a run folder or a file of weights, or use null.")
    own = (RunFolder(path).fp, Path(path) / FP_NET)
    return next((file for file in own if os.path.exists(file)), Path(path))  # a name may be too long for pathlib
