"""A sweep from the inside: what one of its jobs does, in this process or in a launcher's."""

from __future__ import annotations

import signal
from dataclasses import dataclass, replace
from typing import Any

from hydra.core.hydra_config import HydraConfig
from tqdm import tqdm

from repq_cli.build import checked, stored
from repq_cli.cli.jobs import resume_job, run_key, same_data, same_run, train
from repq_cli.config import Config
from repq_cli.data.identity import Identity
from repq_cli.errors import DataError, Interrupted, RepqError
from repq_cli.runs.folder import RunFolder
from repq_cli.runs.row import deployed_metric, failure
from repq_cli.runs.sweep import Job, Marks, Plan, SweepFolder
from repq_cli.train.interrupt import hand_back, interruptible
from repq_cli.train.mending import damage


def sweep_job(tree: dict[str, Any]) -> float | None:
    """The job of a sweep that Hydra's configuration names, in this process or in a launcher's."""
    hydra = HydraConfig.get()
    alone = hydra.launcher["_target_"].endswith(".BasicLauncher")
    return SweepJob(SweepFolder(hydra.sweep.dir), int(hydra.sweep.subdir), alone).carry_out(tree)


@dataclass(frozen=True)
class SweepJob:
    """Job ``number`` of the sweep in a folder. ``alone``: the launcher runs one job after the other in its process."""

    sweep: SweepFolder
    number: int
    alone: bool

    @property
    def folder(self) -> RunFolder:
        """The run folder."""
        return self.sweep.job(self.number)

    def carry_out(self, tree: dict[str, Any]) -> float | None:
        """The run's deployed metric, from its row if it is done; None where it was left out, was stopped, or failed.

        A failure stands in the row, and no error of Hydra's is wanted beside it. Interrupted ends a sweep that runs in
        one process at once; elsewhere the others must reach their checkpoints.
        """
        plan = self.sweep.read_plan()
        job = self._planned(plan)
        if job.key is None or self.sweep.stopped_by is not None:
            if not any(self.folder.path.iterdir()):
                self.folder.path.rmdir()
            return None
        if not self.alone and tree["verbosity"] == "normal":
            tree = tree | {"verbosity": "quiet"}  # several at once would talk through each other
        config = checked(tree)
        if run_key(config) != job.key:
            raise self._unplanned()
        position = (plan.legal if plan.trials is None else plan.jobs).index(job) + 1
        self._say(config, f"\n[{position}/{plan.trials or plan.total}] job {self.number}: {plan.label(self.number)}")
        with self.sweep.running(self.number):
            try:
                with interruptible(self._stop):
                    return self._run(config, plan)
            except Interrupted as interruption:
                self._stopped(interruption)
                return None
            except Exception as error:
                if self.folder.readable_row().get("error") != failure(error)["error"]:
                    raise  # no row tells of it
                kind = "" if isinstance(error, RepqError) else f"{type(error).__name__}: "
                self._say(config, f"failed: {kind}{error}")
                return None

    @property
    def _stop(self) -> Marks:
        """What asks for a stop of all jobs, or of this one."""
        return Marks((self.sweep.stop_file, self.sweep.prune_file(self.number)))

    def _stopped(self, interruption: Interrupted) -> None:
        """What follows a stop: the next trial, a new start by the scheduler, or the end of the sweep."""
        if self.sweep.stopped_by is None:
            if self.sweep.prune_file(self.number).exists():
                self.folder.write_row(self.folder.readable_row() | {"status": "pruned", "error": None})
                return
            hand_back()
        if self.alone:
            raise interruption
        self.sweep.ask_to_stop(interruption.args[0])

    def _planned(self, plan: Plan) -> Job:
        if self.number >= len(plan.jobs):
            raise self._unplanned()
        return plan.jobs[self.number]

    def _unplanned(self) -> DataError:
        """Hydra made another configuration for the job than was planned."""
        return DataError(
            f"Job {self.number} of {self.sweep} is not the one that was planned: the configuration files, or repq, "
            f"have changed since; start a new sweep."
        )

    def _run(self, config: Config, plan: Plan) -> float:
        twins = plan.twins(self.number)
        if not twins and self.alone:
            self._train(config, plan)
            return deployed_metric(self.folder.readable_row())
        # Another process may be at a twin, or at this very job: one that outlived its launcher, which was killed.
        with self.sweep.once(str(plan.jobs[self.number].key), self._check_stop):
            self._check_stop()
            finished = [twin for twin in twins if self._is_done(twin)]
            if self._is_done(self.number) and self._is_of(config):
                self._say(config, "done before")
            elif finished:
                self._say(config, f"the same run as job {finished[0]}: its result is taken")
                self._adopt(finished[0], config)
            else:
                self._train(config, plan)
        return deployed_metric(self.folder.readable_row())

    def _is_done(self, number: int) -> bool:
        """Whether a job is done, and none of its networks is damaged."""
        folder = self.sweep.job(number)
        return folder.status == "done" and damage(folder, folder.readable_row()) is None

    def _train(self, config: Config, plan: Plan) -> None:
        stop = self._stop
        if not self.folder.is_used:
            train(config, self.folder, stop, plan.command, self._beside(config, plan))
            return
        if not self._is_of(config):
            raise DataError(
                f"{self.folder} holds a run of another configuration: remove the folder, or start a new sweep."
            )
        begun = replace(stored(self.folder, config.plugins), runtime=config.runtime, verbosity=config.verbosity)
        resume_job(self.folder, begun, stop, self._beside(config, plan))

    def _beside(self, config: Config, plan: Plan) -> RunFolder | None:
        """The first other job that began with the same data, as far as the configuration tells."""
        others = (self.sweep.job(job.number) for job in plan.legal if job.number != self.number)
        begun = (folder for folder in others if folder.is_used and folder.data_file.exists())
        return next((folder for folder in begun if self._has_data_of(folder, config)), None)

    @staticmethod
    def _has_data_of(folder: RunFolder, config: Config) -> bool:
        """Whether another job reads the same data; one whose files are damaged is no measure of that."""
        try:
            Identity.load(folder.data_file)
            return same_data(stored(folder, config.plugins), config)
        except RepqError:
            return False

    def _is_of(self, config: Config) -> bool:
        """Whether the folder's run is of this configuration; one that lost its config.yaml is taken for it."""
        return not self.folder.is_used or same_run(stored(self.folder, config.plugins), config)

    def _adopt(self, twin: int, config: Config) -> None:
        """Make this run's folder from that of an identical run, by links; the row says so."""
        source = self.sweep.job(twin)
        self.folder.adopt(source)
        self.folder.write_config(config.stored())
        row = source.readable_row()
        lineage = row["lineage"] | {"same_as": str(source)}
        self.folder.write_row(row | {"rep": config.rep.name, "lineage": lineage})

    def _check_stop(self) -> None:
        if self.sweep.stopped_by is not None:
            raise Interrupted(signal.SIGTERM)

    @staticmethod
    def _say(config: Config, text: str) -> None:
        if config.verbosity != "quiet":
            tqdm.write(text)
