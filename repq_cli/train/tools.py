"""What a stage may do beside its training steps; see ``qat_tools`` for those of QAT."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class Tools:
    """None: a stage of steps and nothing else. ``end_step`` and all that follows come in the order of their lines."""

    def objective(self, loss: Tensor, outputs: Tensor, x: Tensor) -> Tensor:
        """What is minimised instead of the task's ``loss`` for the ``outputs`` of a batch ``x``."""
        return loss

    def begin_step(self, optimizer: torch.optim.Optimizer, done: float) -> None:
        """Before a training step; ``done``: the fraction of the stage's steps that are."""

    def end_step(self) -> None:
        """After an update."""

    def end_epoch(self) -> None:
        """After an epoch, before it is validated."""

    @contextmanager
    def validated(self) -> Iterator[None]:
        """Inside, the net is what is validated and kept."""
        yield

    def finish(self) -> bool:
        """After training, with the best net; whether it was changed."""
        return False

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to hold."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""


NO_TOOLS = Tools()
