"""A run in a line of TensorBoard's HParams page: what was chosen, and what came of it."""

from __future__ import annotations

from repq_cli.runs.row import Row
from repq_cli.train.experiment import Experiment


def choices(experiment: Experiment) -> dict[str, str | float]:
    """What runs of a sweep may differ in, by the configuration's keys; always the same ones, each of one type."""
    quant, optim, schedule = experiment.quant, experiment.optim, experiment.schedule
    return {
        "model": experiment.model,
        "model.width": float(experiment.config.model.width or 1.0),
        "rep": experiment.signature["rep"],
        "mode": experiment.mode.name,
        "quant.weight_bits": quant.weight_bits,
        "quant.act_bits": quant.act_bits,
        "quant.weight_method": quant.weight_method,
        "quant.act_method": quant.act_method,
        "quant.granularity": quant.granularity,
        "quant.first_last": str(quant.first_last),
        "data": experiment.data_name,
        "data.batch_size": experiment.batch_size,
        "seed": experiment.seed,
        "fp.epochs": experiment.fp.epochs,
        "fp.lr": experiment.fp.lr,
        "qat.epochs": experiment.qat.epochs,
        "qat.lr": experiment.qat.lr,
        "optim": optim.name,
        "optim.weight_decay": optim.weight_decay,
        "schedule": schedule.name,
        "metric": experiment.task.metric,
    }


def final_metrics(row: Row) -> dict[str, float]:
    """The run's metric for each of its networks, and what the deployed one costs; those that were measured."""
    found = {
        **{f"final/{net}": row["metric"].get(net) for net in ("deployed", "qat", "fp")},
        "final/bytes": row["size"]["bytes_packed"],
        "final/bops": row["cost"]["bops"],
    }
    return {name: float(value) for name, value in found.items() if value is not None}
