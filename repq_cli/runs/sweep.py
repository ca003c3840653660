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
from repq_cli.files import locked, parsed_json, read_regular, write_json
from repq_cli.runs.folder import RunFolder

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
    """A sweep: the ``command`` as it was typed, Hydra's ``arguments`` for it, and what they expand to."""

    command: str
    overrides: list[str]
    flags: list[str]
    jobs: list[Job]

    @property
    def quiet(self) -> bool:
        """Whether only what goes wrong, and the end, is to be said."""
        said = [text for text in self.overrides if text.startswith("verbosity=")]
        return said[-1:] in (["verbosity=quiet"], ["verbosity=choice(quiet)"])

    @property
    def legal(self) -> list[Job]:
        """The jobs that can be run."""
        return [job for job in self.jobs if job.key is not None]

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


class SweepFolder:
    """One sweep's folder, which need not exist.

    stop_file: while it is there no job is to begin, and those that run are to stop; it holds the signal's number.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.plan_file, self.stop_file, self._running = (self.path / name for name in (PLAN, ".stop", ".running"))

    def __str__(self) -> str:
        return str(self.path)

    @property
    def is_used(self) -> bool:
        """Whether a sweep has begun here."""
        return os.path.lexists(self.plan_file)

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
        """Whether every job that can be run is done."""
        return len(self.numbers(plan, "done")) == len(plan.legal)

    def clear_marks(self) -> None:
        """Forget what processes that are gone have left."""
        with suppress(OSError):
            self.stop_file.unlink(missing_ok=True)
        shutil.rmtree(self._running, ignore_errors=True)

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
        mark.touch()
        try:
            yield
        finally:
            mark.unlink(missing_ok=True)

    def count_running(self) -> int:
        """How many jobs run now."""
        return len(list(self._running.iterdir())) if self._running.is_dir() else 0

    def once(self, key: str, wait: Callable[[], None]) -> AbstractContextManager[None]:
        """Hold the lock that jobs of one configuration share, as ``files.locked`` does."""
        return locked(self.path / f".{key}.lock", wait)


def _require_kinds(plan: Plan) -> None:
    """Raises ValueError for a plan whose parts are not of their kinds, which somebody has changed."""
    lists = [plan.overrides, plan.flags, *(job.overrides for job in plan.jobs)]
    texts = [plan.command, *(text for job in plan.jobs for text in (job.key, job.left_out) if text is not None)]
    if not all(isinstance(each, list) for each in lists):
        raise ValueError("overrides and flags are no lists")
    numbered = [job.number for job in plan.jobs] == list(range(len(plan.jobs)))
    if not numbered or not all(isinstance(text, str) for text in (*texts, *(text for each in lists for text in each))):
        raise ValueError("its jobs are not numbered, or not of texts")


def same_jobs(first: Plan, second: Plan) -> bool:
    """Whether two sweeps run the same configurations under the same numbers."""

    def keys(plan: Plan) -> Sequence[str | None]:
        return [job.key for job in plan.jobs]

    return keys(first) == keys(second)
