"""What a sweep consists of: the command and every job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


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


def same_jobs(first: Plan, second: Plan) -> bool:
    """Whether two sweeps run the same configurations under the same numbers."""

    def keys(plan: Plan) -> Sequence[str | None]:
        return [job.key for job in plan.jobs]

    return keys(first) == keys(second)
