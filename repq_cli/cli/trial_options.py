"""``hydra.sweeper`` of a sweep whose jobs Optuna proposes. Imports neither Optuna nor Hydra."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from repq_cli.bounds import Range
from repq_cli.problems import Problem
from repq_cli.typecheck import annotations_of, mistake, nearest

OPTUNA = "optuna"


@dataclass(frozen=True, kw_only=True)
class TrialOptions:
    """Keys of ``hydra.sweeper``; their defaults stand in ``configs/hydra/sweeper/optuna.yaml``.

    n_trials: of the whole sweep. n_jobs: proposed together, before any of them has a result.
    sampler: how values are proposed. pruner: by what trials are stopped before their end. seed: of the proposals.
    storage: the URL of a database; null: a file in the sweep's folder. params: of a ``sweep/NAME.yaml`` alone.
    """

    n_trials: Annotated[int, Range(1, 10_000)]
    n_jobs: Annotated[int, Range(1, 10_000)]
    sampler: Literal["tpe", "random"]
    pruner: Literal["none", "median", "hyperband"]
    seed: Annotated[int, Range(0, 2**31)]
    storage: str | None
    params: None = None


def problems_of(section: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong with the section. Its ``params`` are checked where those of all sweepers are."""
    annotations = annotations_of(TrialOptions)
    for key, value in section.items():
        name = f"hydra.sweeper.{key}"
        if key not in annotations:
            near = nearest(key, annotations)
            yield Problem(name, value, f"is an unknown key{f'; did you mean {near!r}?' if near else ''}")
        elif key != "params" and (said := mistake(annotations[key], value)):
            yield Problem(name, value, said)


def options_of(section: Mapping[str, Any]) -> TrialOptions:
    """The section, which was checked, as an object."""
    return TrialOptions(**{field.name: section[field.name] for field in fields(TrialOptions) if field.name != "params"})
