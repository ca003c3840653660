"""A whole run in its folder: lock, logs, and a row whatever happens."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml

from repq_cli.devices import use_device
from repq_cli.errors import ConfigError, DataError, Interrupted
from repq_cli.files import Taken, locked, write_atomically, write_json
from repq_cli.quant.options import QuantOptions
from repq_cli.report.closing import closing_table
from repq_cli.report.row import Row, failure, now, read_row, write_row
from repq_cli.train.checkpoint import RunCheckpoints
from repq_cli.train.environment import environment
from repq_cli.train.experiment import Experiment
from repq_cli.train.interrupt import stop_request
from repq_cli.train.log import RunLog, logger, logging_to
from repq_cli.train.pipeline import Run
from repq_cli.train.stage import Surroundings


def run(
    experiment: Experiment,
    run_dir: Path,
    resume: bool = False,
    stop_file: Path | None = None,
    command_line: str | None = None,
) -> Row:
    """Carry out a run in ``run_dir`` and return its row, which also stands in summary.json, whatever happens.

    It stops after a checkpoint at a signal, or where ``stop_file`` appears. ``command_line``: what the row tells of how
    it was started, by default this process' own.
    Raises ConfigError if ``run_dir`` holds a run that is not to be resumed, DataError if another process works in it.
    """
    with alone_in(run_dir), logging_to(run_dir / "train.log", experiment.verbosity), stop_request(stop_file) as stop:
        if not resume:
            _refuse_used(run_dir)
            write_atomically(run_dir / "config.yaml", yaml.safe_dump(experiment.config, sort_keys=False).encode())
        done = read_row(run_dir) if resume else None
        if done is not None and done["status"] == "done":
            logger.info("%s is already done:\n%s", run_dir, closing_table(done))
            return done
        log = RunLog(run_dir, experiment.runtime.tensorboard, experiment.verbosity == "quiet")
        row = _opening_row(experiment, _env(run_dir, command_line))
        try:
            device = _prepare(experiment, run_dir)
            logger.info("%s\n%s", _title(experiment, device), run_dir)
            around = Surroundings(
                experiment.data,
                experiment.batch_size,
                experiment.task,
                experiment.optim,
                experiment.schedule,
                experiment.runtime,
                experiment.seed,
                device,
                log,
                RunCheckpoints(run_dir),
                stop,
            )
            Run(experiment, around, run_dir, row).carry_out(resume)
        except Interrupted as interruption:
            write_row(run_dir, row | {"status": "interrupted", "error": f"stopped by signal {interruption.args[0]}"})
            logger.warning("Stopped. Go on with: repq train resume=%s", run_dir)
            raise
        except Exception as error:
            write_row(run_dir, row | failure(error))
            raise
        finally:
            log.close()
        logger.info("%s\n  %s", closing_table(row), run_dir)
        return row


@contextmanager
def alone_in(run_dir: Path) -> Iterator[None]:
    """Hold the folder's lock; DataError if another process does."""
    try:
        with locked(run_dir / ".lock"):
            yield
    except Taken:
        raise DataError(f"Another process is working in {run_dir}: wait for it, or choose another folder.") from None


def _title(experiment: Experiment, device: torch.device) -> str:
    """What is about to happen, in a line."""
    data = experiment.data
    return (
        f"{experiment.model}, rep {experiment.rep}, mode {experiment.mode.name}, {experiment.quant.label}, on "
        f"{data.info.name} ({len(data.train)} images to train, {len(data.val)} to validate, "
        f"{sum(map(len, data.tests.values()))} to test), "
        f"{device}, seed {experiment.seed}"
    )


def _prepare(experiment: Experiment, run_dir: Path) -> torch.device:
    """Device and threads."""
    if experiment.runtime.threads is not None:
        torch.set_num_threads(experiment.runtime.threads)
    RunCheckpoints(run_dir).create()
    return use_device(experiment.runtime.device)


def _refuse_used(run_dir: Path) -> None:
    if (run_dir / "config.yaml").exists():
        raise ConfigError(f"{run_dir} holds a run already: go on with it by resume={run_dir}, or name another folder.")


def _env(run_dir: Path, command_line: str | None) -> dict[str, Any]:
    """env.json, written when the run starts; a resumed run keeps the command and the time of its start."""
    path = run_dir / "env.json"
    if not path.exists():
        write_json(path, {"command_line": command_line or " ".join(sys.argv), "started": now(), **environment()})
    found: dict[str, Any] = json.loads(path.read_text())
    return found


# Of the quantizer's keys those that every row has; others stand there where they are not at their defaults.
QUANT_KEYS = ("weight_method", "act_method", "weight_bits", "act_bits", "granularity", "first_last", "residual")


def _quant(options: QuantOptions) -> dict[str, Any]:
    changed = {key: value for key, value in asdict(options).items() if value != getattr(QuantOptions(), key)}
    return {key: getattr(options, key) for key in QUANT_KEYS} | changed


def _opening_row(experiment: Experiment, env: dict[str, Any]) -> Row:
    git = env["git"]
    return {
        "status": "done",
        "model": experiment.model,
        "rep": experiment.rep,
        "mode": experiment.mode.name,
        "data": experiment.data_name,
        "task": experiment.task.name,
        "seed": experiment.seed,
        "command_line": env["command_line"],
        "quant": _quant(experiment.quant),
        "lineage": {
            "fp_cache": experiment.fp_key,
            "fp_run": experiment.fp.checkpoint,
            "git_commit": git and git["commit"],
            "torch_version": torch.__version__,
            "started": env["started"],
        },
    }
