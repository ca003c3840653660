"""What a stage may do beside its training steps; see ``qat_tools`` for those of QAT."""

from __future__ import annotations

import torch
from torch import Tensor


class Tools:
    """None: a stage of steps and nothing else. A tool has no state of its own, so that checkpoints need none of it."""

    def objective(self, loss: Tensor, outputs: Tensor, x: Tensor) -> Tensor:
        """What is minimised instead of the task's ``loss`` for the ``outputs`` of a batch ``x``."""
        return loss

    def begin_step(self, optimizer: torch.optim.Optimizer, done: float) -> None:
        """Before a training step; ``done``: the fraction of the stage's steps that are."""

    def end_epoch(self) -> None:
        """After an epoch, before it is validated."""

    def finish(self) -> bool:
        """After training, with the best net; whether it was changed."""
        return False


NO_TOOLS = Tools()
