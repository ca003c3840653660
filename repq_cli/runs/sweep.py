"""A sweep: its plan, and its folder with a run folder for each job and marks by which processes know of each other."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from repq_cli.errors import DataError
from repq_cli.files import is_dead, locked, own_name, parsed_json, read_regular, write_json
from repq_cli.runs.folder import RunFolder, refuse_links

PLAN = "sweep.json"


@dataclass(frozen=True)
class Job:
    """One run of a sweep, in the folder of its number; ``key`` identifies its configuration.

    left_out: why the combination is none that can be run; such a job has no key.
    """

    number: int
    overrides: list[str]
    key: str | None = None
    left_out: str | None = None

    @property
    def runtime(self) -> list[str]:
        """What it says of how it is carried out: times depend on that, though results do not."""
        return [text for text in self.overrides if text.startswith("runtime.")]


@dataclass(frozen=True)
class Plan:
    """A sweep: the ``command`` as it was typed, its ``overrides`` and ``flags``, and what they expand to.

    trials: how many jobs there will be, where a sweeper proposes one after the other; None where ``jobs`` are all.
    """

    command: str
    overrides: list[str]
    flags: list[str]
    jobs: list[Job]
    trials: int | None = None

    @property
    def quiet(self) -> bool:
        """Whether only what goes wrong, and the end, is to be said."""
        said = [text for text in self.overrides if text.startswith("verbosity=")]
        return said[-1:] in (["verbosity=quiet"], ["verbosity=choice(quiet)"])  # the second of earlier versions

    @property
    def legal(self) -> list[Job]:
        """The jobs that can be run."""
        return [job for job in self.jobs if job.key is not None]

    @property
    def total(self) -> int:
        """How many jobs that can be run there are, or will be if no proposal is left out any more."""
        return len(self.legal) if self.trials is None else self.trials - len(self.jobs) + len(self.legal)

    @property
    def varied(self) -> dict[str, int]:
        """The keys that the sweep varies, and which of a job's overrides each is."""
        columns = list(zip(*(job.overrides for job in self.jobs), strict=True))
        keys = [column[0].lstrip("+").partition("=")[0] for column in columns]
        return {key: index for index, key in enumerate(keys) if len(set(columns[index])) > 1}

    def label(self, number: int) -> str:
        """What sets a job apart from the others: the overrides that the sweep varies."""
        return " ".join(self.jobs[number].overrides[index].lstrip("+") for index in self.varied.values())

    def twins(self, number: int) -> list[int]:
        """The other jobs of the same configuration, such as Plain beside another block, which it does not use."""
        own = self.jobs[number]
        same = (job for job in self.legal if (job.key, job.runtime) == (own.key, own.runtime))
        return [job.number for job in same if job is not own]


@dataclass(frozen=True)
class Marks:
    """Files that ask for the same thing, each for a reason of its own."""

    files: tuple[Path, ...]

    def exists(self) -> bool:
        """Whether one of them does."""
        return any(file.exists() for file in self.files)


class SweepFolder:
    """One sweep's folder, which need not exist.

    stop_file: while it is there no job is to begin, and those that run are to stop; it holds the signal's number.
    study_file: what Optuna knows of the trials.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.plan_file, self.stop_file, self._running = (self.path / name for name in (PLAN, ".stop", ".running"))
        self._pruned, self.study_file = self.path / ".pruned", self.path / "optuna.db"

    def __str__(self) -> str:
        return str(self.path)

    @property
    def is_used(self) -> bool:
        """Whether a sweep has begun here."""
        return os.path.lexists(self.plan_file)

    def refuse_links(self) -> None:
        """Raise DataError where a job's folder, or what jobs write beside it, is a link."""
        own = [self.stop_file, self._running, self._pruned, self.study_file, self.path / ".submitit"]
        refuse_links([*own, *self.path.glob("[0-9]*")])

    def read_plan(self) -> Plan:
        """The plan. Raises DataError if it is missing or damaged."""
        try:
            content = parsed_json(read_regular(self.plan_file))
            plan = Plan(jobs=[Job(**job) for job in content.pop("jobs")], **content)
            _require_kinds(plan)
            return plan
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"{self.plan_file} cannot be read ({error}): start a new sweep.") from error

    def write_plan(self, plan: Plan) -> None:
        """Write the plan."""
        write_json(self.plan_file, asdict(plan))

    def job(self, number: int) -> RunFolder:
        """The run folder of a job."""
        return RunFolder(self.path / str(number))

    def numbers(self, plan: Plan, status: str) -> list[int]:
        """The jobs whose rows have a status."""
        return [job.number for job in plan.legal if self.job(job.number).status == status]

    def is_finished(self, plan: Plan) -> bool:
        """Whether every job that can be run is done, or was pruned, and no more are to come."""
        ended = [job for job in plan.legal if self.job(job.number).status in ("done", "pruned")]
        return len(ended) == len(plan.legal) and plan.trials in (None, len(plan.jobs))

    def clear_marks(self) -> None:
        """Forget what processes that are gone have left."""
        with suppress(OSError):
            self.stop_file.unlink(missing_ok=True)
        for folder in (self._running, self._pruned):
            shutil.rmtree(folder, ignore_errors=True)

    def ask_to_stop(self, signal_number: int) -> None:
        """Tell the jobs, in whichever process, to stop."""
        self.stop_file.write_text(str(signal_number))

    @property
    def stopped_by(self) -> int | None:
        """The number of the signal by which the jobs are to stop; None where they are not."""
        try:
            return int(read_regular(self.stop_file))
        except FileNotFoundError:
            return None
        except (OSError, ValueError):  # just made, and still empty
            return int(signal.SIGTERM)

    @contextmanager
    def running(self, number: int) -> Iterator[None]:
        """Mark a job as running inside the block."""
        mark = self._running / str(number)
        mark.parent.mkdir(exist_ok=True)
        mark.write_text(own_name())
        try:
            yield
        finally:
            mark.unlink(missing_ok=True)

    def running_now(self) -> set[int]:
        """The jobs that run, without those of killed processes, as far as this machine can tell."""
        found = set()
        for mark in self._running.iterdir() if self._running.is_dir() else ():
            with suppress(OSError, ValueError):  # it is gone by now
                if not is_dead(mark.read_text()):
                    found.add(int(mark.name))
        return found

    def prune_file(self, number: int) -> Path:
        """While it is there a job is to stop, since others of its sweep promise more."""
        return self._pruned / str(number)

    def prune(self, number: int) -> None:
        """Tell a job, in whichever process, that it is not worth going on."""
        mark = self.prune_file(number)
        mark.parent.mkdir(exist_ok=True)
        mark.touch()

    def once(self, key: str, wait: Callable[[], None]) -> AbstractContextManager[None]:
        """Hold the lock that jobs of one configuration share, as ``files.locked`` does."""
        return locked(self.path / f".{key}.lock", wait)


def _require_kinds(plan: Plan) -> None:
    """Raises ValueError for a plan whose parts are not of their kinds, which somebody has changed."""
    lists = [plan.overrides, plan.flags, *(job.overrides for job in plan.jobs)]
    texts = [plan.command, *(text for job in plan.jobs for text in (job.key, job.left_out) if text is not None)]
    if not all(isinstance(each, list) for each in lists):
        raise ValueError("overrides and flags are no lists")
    if not (plan.trials is None or (isinstance(plan.trials, int) and plan.trials >= len(plan.jobs))):
        raise ValueError("trials is no number of jobs")
    numbered = [job.number for job in plan.jobs] == list(range(len(plan.jobs)))
    if not numbered or not all(isinstance(text, str) for text in (*texts, *(text for each in lists for text in each))):
        raise ValueError("its jobs are not numbered, or not of texts")


def same_jobs(first: Plan, second: Plan) -> bool:
    """Whether two sweeps run the same configurations under the same numbers, or are to search the same."""
    if first.trials is not None or second.trials is not None:
        return first.overrides == second.overrides

    def keys(plan: Plan) -> Sequence[str | None]:
        return [job.key for job in plan.jobs]

    return keys(first) == keys(second)
