"""Weights & Biases: a run in ``outputs/wandb``, offline unless WANDB_MODE says otherwise. Needs the extra ``wandb``."""

from __future__ import annotations

import hashlib
import importlib
import os
from typing import Any

import torch
from torch import Tensor

from repq_cli.runs.folder import RunFolder
from repq_cli.runs.outputs import OUTPUTS

wandb: Any = importlib.import_module("wandb")


class WeightsAndBiases:
    """Curves, histograms, pictures, configuration; a run that is resumed has the same name there."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder.path.absolute()
        self._opened: Any = None

    def begin(self, step: int) -> None:
        """Open it."""
        OUTPUTS.mkdir(exist_ok=True)
        self._opened = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "repq"),
            name=self.folder.name,
            id=hashlib.sha256(str(self.folder).encode()).hexdigest()[:16],
            resume="allow" if step >= 0 else None,
            dir=str(OUTPUTS),
            mode=os.environ.get("WANDB_MODE", "offline"),
            settings=wandb.Settings(console="off", silent=True),
        )

    def scalars(self, values: dict[str, float], step: int) -> None:
        """One curve each."""
        self._run.log(values, step=step)

    def histograms(self, tensors: dict[str, Tensor], step: int) -> None:
        """Of finite values."""
        finite = {name: tensor[torch.isfinite(tensor)].detach().cpu().numpy() for name, tensor in tensors.items()}
        self._run.log({name: wandb.Histogram(values) for name, values in finite.items() if len(values)}, step=step)

    def image(self, name: str, picture: Tensor) -> None:
        """A picture of the last step."""
        self._run.log({name: wandb.Image(picture.permute(1, 2, 0).numpy())}, commit=False)

    def outcome(self, choices: dict[str, str | float], metrics: dict[str, float], step: int) -> None:
        """Configuration, curve and summary."""
        self._run.config.update(choices, allow_val_change=True)
        self.scalars(metrics, step)
        self._run.summary.update(metrics)

    def close(self) -> None:
        """End it."""
        if self._opened is not None:
            self._opened.finish()

    @property
    def _run(self) -> Any:
        if self._opened is None:
            self.begin(-1)
        return self._opened
