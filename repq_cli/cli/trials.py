"""A sweep whose jobs nobody knows beforehand: Optuna proposes each by what came of those before.

Its study is a file in the sweep's folder, and no more than a copy of what plan and rows say: it is brought up to date
whenever the sweep goes on, and made again where it is lost.
"""

from __future__ import annotations

import importlib.util
import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override

from repq_cli.cli.terminal import say
from repq_cli.cli.trial_options import TrialOptions
from repq_cli.errors import ConfigError, DataError
from repq_cli.extras import installing
from repq_cli.files import open_regular, read_regular
from repq_cli.runs.folder import RunFolder
from repq_cli.runs.row import deployed_metric
from repq_cli.runs.sweep import Job, Plan, SweepFolder

JOB = "job"  # the attribute of a trial that says which job it is


class Trials:
    """The study of the sweep in ``folder``, which varies the ``swept`` keys."""

    def __init__(self, folder: SweepFolder, plan: Plan, options: TrialOptions, swept: Sequence[Override]) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.folder, self.plan, self.options = folder, plan, options
        self.space = {override.get_key_element(): distribution(override) for override in swept}
        try:
            self.study = self._opened()
        except Exception as error:
            file = folder.study_file
            if options.storage is not None or not file.is_file():
                raise _unusable(options.storage or file, error) from error
            say(f"{file} cannot be read ({_said(error)}): it is made again of what the plan and the rows say.")
            try:
                file.unlink()
                self.study = self._opened()
            except Exception as again:
                raise _unusable(file, again) from again

    def _opened(self) -> Any:
        """The study with trials that can be read; an exception of SQLAlchemy, its drivers or Optuna where it is not."""
        import optuna

        storage, file = self.options.storage, self.folder.study_file
        if storage is None and file.exists():
            open_regular(file).close()
            with closing(sqlite3.connect(file)) as database:
                for (found,) in database.execute("PRAGMA quick_check(1)"):
                    if found != "ok":
                        raise sqlite3.DatabaseError(" ".join(str(found).split()))
        study = optuna.create_study(
            storage=optuna.storages.RDBStorage(storage or _file_url(file)),
            sampler=_sampler(self.options, len(self.plan.jobs)),
            pruner=_pruner(self.options),
            study_name="sweep" if storage is None else self.folder.path.absolute().name,
            direction="maximize",  # as our metrics are to be
            load_if_exists=True,
        )
        study.get_trials(deepcopy=False)
        return study

    def propose(self, count: int) -> list[dict[str, str]]:
        """The values of the next ``count`` trials by key, as text; the trials are known by the jobs that follow."""
        first = len(self.plan.jobs)
        found = []
        for number in range(first, first + count):
            trial = self.study.ask(self.space)
            trial.set_user_attr(JOB, number)
            found.append({key: text_of(value) for key, value in trial.params.items()})
        return found

    def update(self) -> None:
        """Tell Optuna what the rows say of every job."""
        from optuna.trial import TrialState

        known = {trial.user_attrs.get(JOB): trial for trial in self.study.get_trials(deepcopy=False)}
        for job in self.plan.jobs:
            state, value = self._outcome(job)
            trial = known.pop(job.number, None)
            if trial is not None and not trial.state.is_finished():
                if state != TrialState.RUNNING:
                    self.study.tell(trial.number, value, state=state)
            elif state.is_finished() and state != TrialState.FAIL and (trial is None or trial.state == TrialState.FAIL):
                self._add(job, state, value)
        for trial in known.values():
            if not trial.state.is_finished():  # it was proposed when the sweep was killed, and is no job
                self.study.tell(trial.number, state=TrialState.FAIL)

    def watch(self, running: set[int]) -> None:
        """Report the scores of the jobs that run, epoch by epoch, and stop those that the pruner gives up."""
        with suppress(Exception):  # of a database that is busy: the next look tells it all
            self._watch(running)

    def _watch(self, running: set[int]) -> None:
        from optuna.trial import Trial

        if self.options.pruner == "none":
            return
        waiting = {trial.user_attrs.get(JOB): trial for trial in self.study.get_trials(deepcopy=False)}
        for number in running & waiting.keys():
            if waiting[number].state.is_finished() or self.folder.prune_file(number).exists():
                continue
            trial = Trial(self.study, waiting[number]._trial_id)
            for step, value in scores(self.folder.job(number)).items():
                if step not in waiting[number].intermediate_values:
                    trial.report(value, step)
                    if trial.should_prune():
                        self.folder.prune(number)
                        break

    def _outcome(self, job: Job) -> tuple[Any, float | None]:
        from optuna.trial import TrialState

        if job.key is None:
            return TrialState.FAIL, None
        row = self.folder.job(job.number).readable_row()
        if row.get("status") == "done":
            return TrialState.COMPLETE, deployed_metric(row)
        states = {"failed": TrialState.FAIL, "pruned": TrialState.PRUNED}
        return states.get(str(row.get("status")), TrialState.RUNNING), None

    def _add(self, job: Job, state: Any, value: float | None) -> None:
        """A trial that the study has lost, or that failed at its first attempt."""
        import optuna

        values = self.values_of(job)
        params = {key: _parsed(self.space[key], text) for key, text in values.items()}
        if any(value is None for value in params.values()):
            return
        added = optuna.trial.create_trial(
            state=state, value=value, params=params, distributions=self.space, user_attrs={JOB: job.number}
        )
        self.study.add_trial(added)

    def values_of(self, job: Job) -> dict[str, str]:
        """What Optuna proposed for a job, by key. Raises DataError where the plan does not say it."""
        texts = dict(text.partition("=")[::2] for text in job.overrides)
        if not self.space.keys() <= texts.keys():
            raise DataError(f"{self.folder.plan_file} does not say what job {job.number} varies: start a new sweep.")
        return {key: texts[key] for key in self.space}


def _said(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _unusable(where: object, error: Exception) -> DataError:
    return DataError(f"{where} cannot be used ({_said(error)}): remove it, and it is made again.")


def require_optuna() -> None:
    """Raises ConfigError without it."""
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError(f"hydra/sweeper=optuna needs Optuna: {installing('optuna')} brings it.")


def distribution(override: Override) -> Any:
    """What Optuna may propose for a key: ``A,B``, ``range(A,B)``, ``interval(A,B)`` or ``tag(log,interval(A,B))``."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value: Any = override.value()
    if override.is_interval_sweep():
        kind = IntDistribution if isinstance(value.start, int) and isinstance(value.end, int) else FloatDistribution
        return kind(value.start, value.end, log="log" in value.tags)
    texts = list(override.sweep_string_iterator())
    if override.is_range_sweep() and len(texts) > 1 and not value.shuffle:
        low, following, high = (_number(texts[index]) for index in (0, 1, -1))
        if low < following:
            kind = IntDistribution if isinstance(following, int) else FloatDistribution
            return kind(low, high, step=following - low)
    return CategoricalDistribution(texts)


def text_of(value: Any) -> str:
    """A proposed value as Hydra reads it."""
    return value if isinstance(value, str) else repr(value)


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _parsed(space: Any, text: str) -> Any:
    """The value that a text stands for; None where it is none of the distribution's."""
    from optuna.distributions import CategoricalDistribution

    try:
        value = text if isinstance(space, CategoricalDistribution) else _number(text)
        return value if space._contains(space.to_internal_repr(value)) else None
    except ValueError:
        return None


def _sampler(options: TrialOptions, told: int) -> Any:
    """How values are proposed; a sweep that goes on does not propose once more what it began with."""
    import optuna

    seed = options.seed + told
    if options.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed, constant_liar=options.n_jobs > 1)


def _file_url(file: Path) -> str:
    """The URL of a database in a file, whatever signs its name has."""
    from sqlalchemy import URL

    return URL.create("sqlite", database=str(file.absolute())).render_as_string()


def _pruner(options: TrialOptions) -> Any:
    import optuna

    pruners = {"none": "NopPruner", "median": "MedianPruner", "hyperband": "HyperbandPruner"}
    return getattr(optuna.pruners, pruners[options.pruner])()


def scores(run: RunFolder) -> dict[int, float]:
    """The validation metric after each epoch of QAT, as far as a run has come. FP stages are shared, and no measure."""
    found: dict[int, float] = {}
    with suppress(OSError):
        for line in read_regular(run.log_file).decode(errors="replace").splitlines():
            with suppress(ValueError):  # a line that is being written
                entry = json.loads(line)
                if isinstance(entry, dict) and entry.get("stage") == "qat":
                    values = [value for key, value in entry.items() if key.startswith("val_")]
                    found |= {int(entry["epoch"]): float(value) for value in values[:1]}
    return found


def batches(trials: Trials, left: list[Job], make_job: Callable[[int, Mapping[str, str]], Job]) -> Iterator[list[Job]]:
    """Jobs to launch together: those that are ``left``, then what is proposed, by which the plan grows."""
    folder, plan, options = trials.folder, trials.plan, trials.options
    try:
        trials.update()
        if left:
            yield left
        while len(plan.jobs) < options.n_trials:
            trials.update()
            proposed = trials.propose(min(options.n_jobs, options.n_trials - len(plan.jobs)))
            jobs = [make_job(number, values) for number, values in enumerate(proposed, len(plan.jobs))]
            plan.jobs.extend(jobs)
            folder.write_plan(plan)
            if legal := [job for job in jobs if job.key is not None]:
                yield legal
    finally:
        trials.update()
