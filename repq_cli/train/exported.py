"""What becomes of a run's layers when it is exported, known before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from repq_cli.deploy.freeze import freeze
from repq_cli.deploy.runs_as import floating, runs_as
from repq_cli.modes.compose import compose
from repq_cli.train.experiment import Experiment


@torch.no_grad()
def will_be_floating(experiment: Experiment) -> Iterator[str]:
    """Which layers will run in floating point, and why: a sentence for each reason; none of a run in full precision.

    Draws no random number that training would draw.
    """
    mode, quant = experiment.mode, experiment.quant
    if quant.label == "fp32":
        return
    with torch.random.fork_rng(devices=[]):
        images = [torch.zeros(2, *experiment.data.info.shape)]
        net = compose(mode.rule.shaped_net(experiment.make_net(), images, mode), mode, quant)
        shipped = mode.rule.shipped_net(net, "lsq")
    yield from floating(runs_as(freeze(shipped, {"input_shape": list(experiment.data.info.shape)})))
