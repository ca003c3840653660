"""A sweep from the inside: what one of its jobs does, in this process or in a launcher's."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from repq_cli.cli.jobs import checked, resume_job, run_key, same_run, stored_config, train_job
from repq_cli.cli.plan import Job, Plan
from repq_cli.errors import DataError, Interrupted, RepqError
from repq_cli.files import link, locked, write_atomically
from repq_cli.report.row import Row, read_row, write_row

STOP = ".stop"  # in the sweep's folder: no job is to begin, and those that run are to stop
RUNNING = ".running"  # a folder there: a file for each job that runs
OF_A_RUN = (".lock", "config.yaml", "summary.json")  # what identical runs do not share


def row_of(sweep: Path, number: int) -> Row:
    """The row of a job, empty where there is none that can be read."""
    try:
        row = read_row(sweep / str(number))
    except DataError:
        return {}
    return row if isinstance(row, dict) else {}


def _link_or_copy(source: str, target: str) -> None:
    """A link for files that are replaced and never changed, a copy for logs."""
    if {"checkpoints", "deploy"} & set(Path(source).parts):
        link(Path(source), Path(target))
    else:
        shutil.copyfile(source, target)


@dataclass(frozen=True)
class SweepJob:
    """Job ``number`` of the sweep in a folder. ``alone``: the launcher runs one job after the other in its process."""

    sweep: Path
    number: int
    alone: bool

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.sweep / str(self.number)

    def carry_out(self, config: dict[str, Any]) -> float | None:
        """The run's deployed metric, from its row if it is done; None where it was left out, was stopped, or failed.

        A failure stands in the row, and no error of Hydra's is wanted beside it. Interrupted ends a sweep that runs in
        one process at once; elsewhere the others must reach their checkpoints.
        """
        plan = Plan.load(self.sweep)
        job = self._planned(config, plan)
        if job.key is None or (self.sweep / STOP).exists():
            if not any(self.folder.iterdir()):
                self.folder.rmdir()
            return None
        if not self.alone and config["verbosity"] == "normal":
            config = config | {"verbosity": "quiet"}  # several at once would talk through each other
        position = plan.legal.index(job) + 1
        self._say(config, f"\n[{position}/{len(plan.legal)}] job {self.number}: {plan.label(self.number)}")
        with self._running():
            try:
                return self._run(config, plan)
            except Interrupted as interruption:
                if self.alone:
                    raise
                (self.sweep / STOP).write_text(str(interruption.args[0]))
                return None
            except Exception as error:
                if row_of(self.sweep, self.number).get("status") != "failed":
                    raise
                kind = "" if isinstance(error, RepqError) else f"{type(error).__name__}: "
                self._say(config, f"failed: {kind}{error}")
                return None

    def _planned(self, config: dict[str, Any], plan: Plan) -> Job:
        """The plan's job of this number; DataError if Hydra made another configuration for it."""
        job = plan.jobs[self.number] if self.number < len(plan.jobs) else None
        if job is None or (job.key is not None and run_key(checked(config)) != job.key):
            raise DataError(
                f"Job {self.number} of {self.sweep} is not the one that was planned: the configuration files, or repq, "
                f"have changed since; start a new sweep."
            )
        return job

    def _run(self, config: dict[str, Any], plan: Plan) -> float:
        twins = plan.twins(self.number)
        row = row_of(self.sweep, self.number)
        if row.get("status") == "done" and self._is_of(config):
            self._say(config, "done before")
        elif twins:
            with locked(self.sweep / f".{plan.jobs[self.number].key}.lock", self._check_stop):
                self._check_stop()
                finished = [twin for twin in twins if row_of(self.sweep, twin).get("status") == "done"]
                if finished:
                    self._say(config, f"the same run as job {finished[0]}: its result is taken")
                    self._adopt(finished[0], config)
                else:
                    self._train(config, plan)
        else:
            self._train(config, plan)
        return float(row_of(self.sweep, self.number)["metric"]["deployed"])

    def _train(self, config: dict[str, Any], plan: Plan) -> None:
        stop = self.sweep / STOP
        if not (self.folder / "config.yaml").exists():
            train_job(config, str(self.folder), stop, plan.command)
            return
        if not self._is_of(config):
            raise DataError(
                f"{self.folder} holds a run of another configuration: remove the folder, or start a new sweep."
            )
        asked = {key: config[key] for key in ("runtime", "verbosity")}
        resume_job(stored_config(self.folder) | asked, self.folder, stop)

    def _is_of(self, config: dict[str, Any]) -> bool:
        """Whether the folder's run is of this configuration; one that lost its config.yaml is taken for it."""
        known = (self.folder / "config.yaml").exists()
        return not known or same_run(stored_config(self.folder), checked(config))

    def _adopt(self, twin: int, config: dict[str, Any]) -> None:
        """Make this run's folder from that of an identical run, by links; the row says so."""
        source = self.sweep / str(twin)
        shutil.copytree(
            source,
            self.folder,
            ignore=shutil.ignore_patterns(*OF_A_RUN),
            copy_function=_link_or_copy,
            dirs_exist_ok=True,
        )
        composed = checked(config)
        write_atomically(self.folder / "config.yaml", yaml.safe_dump(composed, sort_keys=False).encode())
        row = row_of(self.sweep, twin)
        lineage = row["lineage"] | {"same_as": str(source)}
        write_row(self.folder, row | {"rep": composed["rep"]["name"], "lineage": lineage})

    def _check_stop(self) -> None:
        if (self.sweep / STOP).exists():
            raise Interrupted(signal.SIGTERM)

    @contextmanager
    def _running(self) -> Iterator[None]:
        marker = self.sweep / RUNNING / str(self.number)
        marker.parent.mkdir(exist_ok=True)
        marker.touch()
        try:
            yield
        finally:
            marker.unlink(missing_ok=True)

    @staticmethod
    def _say(config: dict[str, Any], text: str) -> None:
        if config["verbosity"] != "quiet":
            tqdm.write(text)
