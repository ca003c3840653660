"""What a stage of training is, and what the stages of a run share."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from repq_cli.runs.folder import RunFolder
from repq_cli.runs.row import Row
from repq_cli.seeds import derive_seed
from repq_cli.train.experiment import Experiment
from repq_cli.train.interrupt import StopRequest
from repq_cli.train.log import RunLog
from repq_cli.train.options import StageOptions
from repq_cli.train.tools import NO_TOOLS, Tools
from repq_cli.train.world import ALONE, World

STATISTICS_BATCHES = 16  # from which batch-norm statistics are restated


@dataclass(frozen=True)
class Stage:
    """A stage is data: a name, a length and a rate, and where its best net is kept.

    ``offset``: training steps of the stages before it, so that one TensorBoard axis holds all of them.
    ``on_epoch`` runs before each epoch with its number. ``steps_apart``: the optimiser keeps quantizers' steps in a
    group of their own.
    """

    name: str
    options: StageOptions
    best: Path
    offset: int = 0
    on_epoch: Callable[[int], None] = lambda epoch: None
    tools: Tools = NO_TOOLS
    steps_apart: bool = False


@dataclass(frozen=True)
class RunContext:
    """What the stages of a run share: what is to be done, where, and with which log; and whether to stop.

    fp_key: of the FP stage that the run began with.
    world: the processes that train together.
    earlier: the row so far of a finished run that is made again after damage; else empty.
    """

    experiment: Experiment
    folder: RunFolder
    device: torch.device
    log: RunLog
    stop: StopRequest
    fp_key: str
    world: World = ALONE
    earlier: Row = field(default_factory=dict)


def first_batches(context: RunContext, stage: str, count: int = STATISTICS_BATCHES) -> Iterator[Tensor]:
    """Images of the batches that a stage would start with: for batch norms' statistics and first steps."""
    experiment = context.experiment
    seed = derive_seed(experiment.seed, stage, 0)
    batches = experiment.data.train.training_batches(experiment.batch_size, seed, device=context.device)
    return (x for x, _ in itertools.islice(batches, count))
