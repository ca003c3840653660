"""The jobs of a sweep, given to Hydra's launchers: in this process, by joblib, submitit (here or on Slurm) or Ray.

Hydra's sweeper would compose all of them once more, and give launchers also those that are done.
"""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from repq_cli.cli.command_line import CommandLine
from repq_cli.cli.composing import Loader
from repq_cli.cli.hydra_app import in_sentences, trusted
from repq_cli.cli.launch import NO_MODULES_HERE
from repq_cli.neighbours import cores

Launch = Callable[[Sequence[Sequence[str]]], list[str | None]]
SUBMITIT = "hydra_plugins.hydra_submitit_launcher.submitit_launcher."


@contextmanager
def launching(
    command: str, job: str, hydra: Sequence[str], line: CommandLine, folder: Path, stopped: Callable[[], bool]
) -> Iterator[Launch]:
    """A function that carries out jobs, each a list of overrides, and returns when all have ended.

    job: ``MODULE:FUNCTION``, which is given a job's configuration. hydra: the overrides of Hydra's own section, which
    choose the launcher. line: the running command, for its plugins and its ``--config-dir``. folder: of the sweep.
    stopped: whether no more jobs are to begin. The function gives for each job why its process was lost, or None; an
    error that a job ended with it raises.
    """
    loader = Loader(command, line.config_dir)
    with in_sentences():
        app = Hydra(task_name=command, config_loader=loader)
        config = app.compose_config(command, ["hydra.mode=MULTIRUN", *hydra], RunMode.RUN, with_log_configuration=True)
        submitit = str(config.hydra.launcher["_target_"]).startswith(SUBMITIT)
        if submitit:
            config.hydra.launcher.submitit_folder = str(_new_folder(folder) / "%j")
        os.environ.setdefault(*NO_MODULES_HERE)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else Ray reports to its makers
        launcher = Plugins.instance().instantiate_launcher(
            config=config,
            hydra_context=HydraContext(config_loader=loader, callbacks=Callbacks()),
            task_function=partial(_task, job, line.plugins),
        )
        yield partial(_launched, launcher, submitit, stopped)


def _launched(
    launcher: Launcher, submitit: bool, stopped: Callable[[], bool], jobs: Sequence[Sequence[str]]
) -> list[str | None]:
    """Carry out jobs. Raises the first error that no job has told of itself."""
    most = cores() if getattr(launcher, "_EXECUTOR", None) == "local" else len(jobs)  # it starts all there are
    lost: list[str | None] = []
    for start in range(0, len(jobs), most):
        if stopped():
            break
        with _patient_submitit() if submitit else nullcontext():
            returned = launcher.launch([list(job) for job in jobs[start : start + most]], start)
        lost += map(_loss, returned)
    return [*lost, *[None] * (len(jobs) - len(lost))]


def _loss(result: JobReturn | str) -> str | None:
    """Why a job's process was lost, or None. Raises what the job raised itself."""
    if isinstance(result, str):
        return result
    try:
        _ = result.return_value
    except RuntimeError as error:
        if not type(error).__module__.startswith("submitit."):
            raise
        return str(error)  # such as that it was started often enough
    return None


def _task(job: str, plugins: Sequence[str], config: DictConfig) -> Any:
    """What a launcher runs for each job, in whichever process."""
    return resolve_name(job)(trusted(config, plugins))


def _new_folder(sweep: Path) -> Path:
    """Where submitit writes its pickles, and what its processes print.

    It reads pickles there, too: nobody who has sent the sweep's folder can have put any into one of this name.
    """
    folder = sweep / ".submitit" / secrets.token_hex(8)
    folder.mkdir(parents=True)
    return folder


@contextmanager
def _patient_submitit() -> Iterator[None]:
    """Inside the block Hydra's submitit launcher waits for all jobs, and its processes do not hear of Ctrl-C.

    It would raise the error of the first lost job at once, while others still run; and submitit's processes on this
    machine kill their jobs a second after Ctrl-C, where ours go on to a checkpoint. Another thread hears of it for us.
    """
    from submitit.core.core import Job
    from submitit.core.utils import FailedJobError, UncompletedJobError

    results = Job.results

    def patient(job: Job[Any]) -> list[Any]:
        try:
            return results(job)
        except FailedJobError as error:
            return [str(error).strip().splitlines()[-1]]
        except UncompletedJobError as error:  # what follows its second line is what the process has printed
            return [" ".join(line.strip() for line in str(error).splitlines()[:2])]

    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    Job.results = patient
    try:
        yield
    finally:
        Job.results = results
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
