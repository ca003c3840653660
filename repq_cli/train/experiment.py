"""What a run is: everything that it needs, built from the configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from repq_cli.config import Config, Verbosity
from repq_cli.data.base import Data
from repq_cli.data.identity import Identity
from repq_cli.modes.options import ModeOptions
from repq_cli.quant.options import QuantOptions
from repq_cli.train.engine import Task
from repq_cli.train.options import OptimOptions, QATOptions, RuntimeOptions, ScheduleOptions, StageOptions

OWN_ACTIVATION = "null"  # as in the configuration: the one of the model's paper


@dataclass(frozen=True)
class Experiment:
    """Everything a run needs, built from the configuration. ``rep`` is what was asked for; not all modes use it."""

    config: Config
    data_name: str
    model: str
    rep: str
    make_net: Callable[[], nn.Module]
    data: Data
    identity: Identity
    batch_size: int
    task: Task
    quant: QuantOptions
    mode: ModeOptions
    fp: StageOptions
    qat: QATOptions
    optim: OptimOptions
    schedule: ScheduleOptions
    runtime: RuntimeOptions
    seed: int
    verbosity: Verbosity
    fp_key: str

    @property
    def signature(self) -> dict[str, str]:
        """What a checkpoint's net must agree in to be loaded here."""
        rep = self.rep if self.mode.rule.uses_branches else "none"
        shape = "x".join(map(str, self.data.info.shape))
        model = self.config.model
        identity = rep != "none" and self.config.rep.identity
        return {
            "model": self.model,
            "rep": rep,
            "model.activation": model.activation or OWN_ACTIVATION,
            "rep.identity": str(identity).lower(),  # such a branch has no weights that would tell
            "input": shape,
            "classes": str(self.data.info.num_classes),
            **({} if model.scale is None else {"model.scale": str(model.scale)}),
        }
