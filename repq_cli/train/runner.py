"""A whole run in its folder: lock, logs, and a row whatever happens."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from repq_cli import neighbours
from repq_cli.data.identity import Identity
from repq_cli.devices import device_of_rank, use_device
from repq_cli.errors import DataError, Interrupted
from repq_cli.files import make_folder
from repq_cli.quant.options import QuantOptions
from repq_cli.runs.closing import closing_table
from repq_cli.runs.folder import RunFolder, alone_in
from repq_cli.runs.row import Row, failure, now
from repq_cli.text import command
from repq_cli.train.context import RunContext
from repq_cli.train.environment import environment
from repq_cli.train.experiment import Experiment
from repq_cli.train.extension import Extension
from repq_cli.train.interrupt import Mark, StopRequest, stop_request
from repq_cli.train.log import NoLog, RunLog, logger, logging_nowhere, logging_to
from repq_cli.train.mending import damage, row_so_far
from repq_cli.train.pipeline import Run
from repq_cli.train.same_data import known_data
from repq_cli.train.spread import require_images
from repq_cli.train.world import Ranks, World, world


def run(
    experiment: Experiment,
    run_dir: Path,
    resume: bool = False,
    stop_file: Mark | None = None,
    command_line: str | None = None,
    figures: Callable[[RunFolder], Iterable[tuple[str, Tensor]]] = lambda folder: (),
    beside: RunFolder | None = None,
    extended: Extension | None = None,
) -> Row:
    """Carry out a run in ``run_dir`` and return its row, which also stands in summary.json, whatever happens.

    It stops after a checkpoint at a signal, or where ``stop_file`` appears. ``command_line``: what the row tells of how
    it was started, by default this process' own. ``figures``: of a run that is done, by title, for TensorBoard.
    ``beside``: another run, which has to have the same data. ``extended``: what is changed of a run that is resumed.
    Raises DataError if ``run_dir`` holds a run that is not to be resumed, if another process works in it, or if the
    data has changed.
    """
    folder = RunFolder(run_dir)
    folder.refuse_links()
    log_lines = logging_to(folder.printed_file, experiment.verbosity)
    with alone_in(run_dir), log_lines, stop_request(stop_file) as stop:
        if folder.is_used and not resume:
            raise DataError(
                f"{folder} holds a run already: go on with it by {command('train', f'resume={folder}')}, or name "
                f"another folder."
            )
        if extended is not None:
            extended.begin(folder)
        done = row_so_far(folder) if resume else None
        if done is not None and done.get("status") != "done":
            done = None
        if done is not None:
            found = damage(folder, done, trained=True)
            if found is None:
                logger.info("%s is already done:\n%s", folder, closing_table(done))
                return done
            logger.warning("%s is done, and then damaged: %s It is made again.", folder, found)
        accept = experiment.runtime.changed_data == "accept"
        identity = known_data(experiment.identity, folder, resume, beside, accept)
        identity.save(folder.data_file)
        if not resume:
            folder.write_config(experiment.config.stored())
        log = RunLog(folder, experiment.runtime.all_trackers, experiment.verbosity == "quiet")
        row = _opening_row(experiment, identity, _env(folder, command_line))
        try:
            processes = world()
            if isinstance(processes, Ranks):
                processes.begin(folder.path)
            processes.share({"config": experiment.config.stored(), "data": identity.whole})
            make_folder(folder.checkpoints)
            device = _prepare(experiment, processes, stop)
            logger.info("%s\n%s", _title(experiment, device), folder)
            crowded = neighbours.hint(neighbours.load(), torch.get_num_threads(), neighbours.cores())
            if crowded is not None:
                logger.info(crowded)
            work = Run(RunContext(experiment, folder, device, log, stop, experiment.fp_key, processes, done or {}), row)
            if done is not None and work.freeze_again():
                return done
            work.carry_out(resume)
            for title, picture in figures(folder) if log.trackers.open else ():
                log.trackers.image(title, picture)
        except Interrupted as interruption:
            world().told(interruption)
            if done is None:
                folder.write_row(row | {"status": "interrupted", "error": f"stopped by signal {interruption.args[0]}"})
            if not experiment.config.fast_dev_run:
                logger.warning("Stopped. Go on with: %s", command("train", f"resume={folder}"))
                interruption.told = True
            raise
        except Exception as found:
            error = world().cause(found)
            if done is None:  # a good row is worth more than the failure of making something again
                folder.write_row(row | failure(error))
            if error is found:
                raise
            raise error from found
        finally:
            log.trackers.close()
        logger.info("%s\n  %s", closing_table(row), folder)
        return row


def follow(experiment: Experiment, whole: str) -> None:
    """What a rank other than the first does of the run that rank 0 carries out: its part of training.

    whole: what the data of that one consists of. Raises DataError where it is not this rank's.
    """
    processes = world()
    with logging_nowhere(), stop_request() as stop:
        try:
            if experiment.identity.whole != whole:
                raise DataError(
                    f"The data of rank {processes.rank} is not that of rank 0: give all machines the same files."
                )
            device = _prepare(experiment, processes, stop)
            nowhere = RunFolder(Path(os.devnull))
            context = RunContext(experiment, nowhere, device, NoLog(), stop, experiment.fp_key, processes)
            Run(context, {"lineage": {}}).carry_out(False)
        except Interrupted as interruption:
            processes.told(interruption)
            raise
        except Exception as found:
            raise processes.cause(found) from found  # here, where a launcher's SIGTERM ends nothing


def _title(experiment: Experiment, device: torch.device) -> str:
    """What is about to happen, in a line."""
    data, precision = experiment.data, experiment.runtime.precision
    return (
        f"{experiment.model}, rep {experiment.rep}, mode {experiment.mode.name}, {experiment.quant.label}, on "
        f"{data.info.name} ({len(data.train)} images to train, {len(data.val)} to validate, "
        f"{sum(map(len, data.tests.values()))} to test), "
        f"{device}{'' if precision == 'fp32' else f' in {precision}'}, seed {experiment.seed}"
    )


def _prepare(experiment: Experiment, processes: World, stop: StopRequest) -> torch.device:
    """Device, threads, and the other ranks."""
    runtime = experiment.runtime
    require_images(experiment.config, processes.size)
    if runtime.threads is not None:
        torch.set_num_threads(runtime.threads)
    device = use_device(runtime.device)
    if isinstance(processes, Ranks):
        processes.check_stop = stop.check
        device = device_of_rank(device, processes.place.local_rank, processes.place.local_size)
        processes.connect(device, runtime.rank_timeout)
    return device


def _env(folder: RunFolder, command_line: str | None) -> dict[str, Any]:
    """What the run was made with, noted when it starts; a resumed run keeps the command and the time of its start."""
    found = folder.read_env()
    if found is None:
        typed = f"{sys.argv[0]} {shlex.join(sys.argv[1:])}"
        found = {"command_line": command_line or typed, "started": now(), **environment()}
        folder.write_env(found)
    return found


# Of the quantizer's keys those that every row has; others stand there where they are not at their defaults.
QUANT_KEYS = ("weight_method", "act_method", "weight_bits", "act_bits", "granularity", "first_last", "residual")


def _quant(options: QuantOptions) -> dict[str, Any]:
    changed = {key: value for key, value in asdict(options).items() if value != getattr(QuantOptions(), key)}
    return {key: getattr(options, key) for key in QUANT_KEYS} | changed


def _opening_row(experiment: Experiment, identity: Identity, env: dict[str, Any]) -> Row:
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
            "data": identity.whole,
            "changed_data": identity.changed or None,
            "extended": env.get("extended"),
            "git_commit": git and git["commit"],
            "torch_version": torch.__version__,
            "started": env["started"],
        },
    }
