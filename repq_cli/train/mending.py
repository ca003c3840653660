"""What a run has lost, or what was damaged in it, and how it is made again of what is whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from repq_cli.deploy.network import DeployedNet
from repq_cli.errors import CheckError, DataError
from repq_cli.runs.closing import closing_table
from repq_cli.runs.folder import RunFolder
from repq_cli.runs.networks import foreign_network
from repq_cli.runs.row import Row
from repq_cli.train import checkpoint
from repq_cli.train.checkpoint_form import misfit
from repq_cli.train.context import RunContext, Stage
from repq_cli.train.log import logger
from repq_cli.train.reload import trained_nets


def row_so_far(folder: RunFolder) -> Row | None:
    """The row of a run that is resumed; None, with a warning, where it is damaged: it can be made again."""
    try:
        row = folder.read_row()
        if row is not None and row.get("status") == "done":
            closing_table(row)
        return row
    except DataError as error:
        logger.warning("%s", error)
    except (KeyError, TypeError, ValueError, AttributeError):
        logger.warning("%s lacks what every row has: it is made again.", folder.row_file)
    if checkpoint.load_last(folder) is None and folder.deploy.exists():
        raise DataError(
            f"{folder.row_file} is damaged, and {folder.last}, from which it could be made again, is gone: "
            f"restore one of them, or start a new run."
        )
    return None


def damage(folder: RunFolder, row: Row, trained: bool = False) -> str | None:
    """What of a finished run's deployed network, and ``trained`` ones, is gone, damaged or another run's; or None."""
    try:
        DeployedNet.load(folder.deploy)
        for path in (folder.fp, folder.best) if trained else ():
            checkpoint.load(path)
    except (DataError, CheckError) as error:
        return str(error)
    return foreign_network(folder, row, "deploy", *(("fp", "best") if trained else ()))


def frozen_again(context: RunContext) -> Any:
    """The net of a finished run that ships, as its checkpoints have it; None where one is damaged or another run's."""
    experiment, folder = context.experiment, context.folder
    try:
        if (foreign := foreign_network(folder, context.earlier, "fp", "best")) is not None:
            raise DataError(foreign)
        channels = experiment.data.info.shape[0]
        nets = trained_nets(folder, experiment.config, experiment.make_net, channels)
    except DataError as error:
        if checkpoint.load_last(folder) is None:
            raise DataError(
                f"{error} Without it, and without {folder.last}, nothing can be made again: restore one, or start "
                f"a new run."
            ) from error
        return None
    return experiment.mode.rule.shipped_net(nets["fake"].to(context.device), experiment.quant.init)


def fitting(
    stage: Stage, context: RunContext, saved: dict[str, Any], net: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """``saved``, what last.pt holds of the stage, or what previous.pt does where that is not of this net.

    Raises DataError where neither is. One of the stage before has this one begin again.
    """

    def wrong(content: dict[str, Any]) -> str | None:
        return misfit(content, net, optimizer) if content["stage"] == stage.name else None

    if (why := wrong(saved)) is None:
        return saved
    previous = checkpoint.load_previous(context.folder, checkpoint.damaged(context.folder.last, why), wrong)
    if previous["stage"] != stage.name:
        context.log.rewind(previous["metrics_bytes"], stage.offset, previous.get("metrics_sha256"))
    return previous


def keep_best(stage: Stage, context: RunContext, saved: dict[str, Any], net: nn.Module) -> None:
    """Make sure that the stage's best net, of which ``saved`` tells, is there: from a checkpoint that holds it.

    ``net``: the one that is trained. Raises DataError where none does.
    """
    if saved["best_score"] is None:
        return
    folder = context.folder
    try:
        name = "fp" if stage.best == folder.fp else "best"
        if (foreign := foreign_network(folder, context.earlier, name)) is not None:
            raise DataError(foreign)
        best = checkpoint.load(stage.best)
        epoch = best.get("epoch", saved["epoch"])
        is_later = epoch >= saved["epoch"]  # of an epoch in which the run was killed, and which comes again
        is_told = (epoch, best.get("score")) == (saved["best_epoch"], saved["best_score"])
        why = misfit(best, net) or (None if is_later or is_told else "it is not the best net that last.pt tells of")
        if why is None:
            return
        lost = checkpoint.damaged(stage.best, why)
    except DataError as error:
        lost = error
    for content in (saved, *_previous(folder)):
        ended_with_best = content["totals"]["steps"] == 0 and content["best_epoch"] == content["epoch"] - 1
        if content["stage"] == stage.name and ended_with_best and content["best_score"] == saved["best_score"]:
            best = {"stage": stage.name, "epoch": content["best_epoch"], "score": content["best_score"]}
            checkpoint.save(stage.best, {**best, "net": content["net"], "signature": content["signature"]})
            logger.warning("%s A checkpoint holds the same net, and it is written again from there.", lost)
            return
    raise DataError(
        f"{lost} No other checkpoint holds the net of epoch {saved['best_epoch'] + 1}: restore the file, or remove "
        f"{folder.checkpoints} and the run starts over."
    ) from lost


def _previous(folder: RunFolder) -> list[dict[str, Any]]:
    try:
        return [checkpoint.load_training(folder.previous)]
    except DataError:
        return []
