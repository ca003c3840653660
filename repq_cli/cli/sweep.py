"""A sweep from the outside: its plan, its launch, its end, and how it goes on."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

from repq_cli.cli.command_line import CommandLine
from repq_cli.cli.launching import launching
from repq_cli.cli.monitor import Monitor
from repq_cli.cli.overrides import Checker
from repq_cli.cli.sweep_plan import OF_HYDRA, Search, named_folder, of_job, plan_and_search, search_of
from repq_cli.cli.sweep_words import closing, opening, quoted
from repq_cli.cli.terminal import say
from repq_cli.cli.trials import Trials, batches, require_optuna
from repq_cli.config import CHANGEABLE, may_change
from repq_cli.errors import ConfigError, DataError, Interrupted, RepqError
from repq_cli.files import make_folder
from repq_cli.runs.folder import RunFolder, alone_in
from repq_cli.runs.outputs import OUTPUTS, reserve
from repq_cli.runs.sweep import PLAN, Job, Plan, SweepFolder, same_jobs
from repq_cli.text import command
from repq_cli.train.interrupt import stop_request
from repq_cli.train.mending import damage

JOB = "repq_cli.cli.sweep_job:sweep_job"  # by name, because it is looked up in a launcher's processes


def start(line: CommandLine, typed: Sequence[str]) -> int:
    """Run every job of a new sweep; ``typed``: the arguments as the user gave them. Returns the exit code."""
    if line.sampled:
        require_optuna()
    named = named_folder(line)
    plan, search = plan_and_search(line, typed, inputs=True)
    folder = SweepFolder(named or reserve(OUTPUTS / "sweep", "train", "hydra.sweep.dir=DIR"))
    make_folder(folder.path)
    folder.refuse_links()
    with alone_in(folder.path):
        if folder.is_used:
            raise DataError(
                f"{folder} holds a sweep already: go on with it by {command('train', f'resume={folder}')}, or name "
                f"another folder."
            )
        folder.write_plan(plan)
        return _carry_out(folder, plan, line, search)


# What of a search may be changed while it goes on, as how it is carried out may be.
OF_SEARCH = tuple(f"hydra.sweeper.{key}" for key in ("n_trials", "n_jobs", "pruner", "storage"))


def resume(folder: SweepFolder, changes: Sequence[str], plugins: Sequence[str]) -> int:
    """Go on with a sweep: finished jobs are skipped, stopped ones go on, failed ones are tried again.

    What its plan says is checked as if it had been typed, but that it names no ``plugins``.
    """
    plan = folder.read_plan()
    changed = {change.lstrip("+").partition("=")[0] for change in changes}
    others = () if plan.trials is None else OF_SEARCH
    for key in sorted(changed):
        if not (may_change(key) or key.startswith(("hydra/launcher", "hydra.launcher.")) or key in others):
            may = ", ".join(("hydra/launcher", *others, CHANGEABLE))
            raise ConfigError(f"{key} cannot be changed by resume=, only {may} can: start a new sweep.")
        if key in plan.varied:
            raise ConfigError(f"{key} is what this sweep varies: start a new sweep.")
    kept = [text for text in plan.overrides if text.lstrip("+").partition("=")[0] not in changed]
    typed = [*changes, *(f"plugins={name}" for name in plugins)]
    if changes and plan.trials is None:  # which are those of a run, whatever the plan's own are
        one_run = [text for text in plan.legal[0].overrides if text.lstrip("+").partition("=")[0] not in changed]
        Checker("train", CommandLine(overrides=[*one_run, *changes], typed=typed)).check()
    line = CommandLine.parse([*kept, *changes, *plan.flags])
    line.typed = typed
    if line.only_shows or not line.multirun or line.sampled != (plan.trials is not None):
        raise DataError(f"{folder.plan_file} is no plan of a sweep (flags {' '.join(plan.flags)}): start a new sweep.")
    if line.sampled:
        require_optuna()
    checker = Checker("train", line)
    try:
        checked = checker.check()
    except ConfigError as error:
        if changes:
            raise
        raise ConfigError(f"{folder.plan_file}: {error}") from error
    search = search_of(checker, checked)
    plan = replace(plan, overrides=checked.overrides, jobs=_jobs_again(folder, plan, checker, search))
    if search is not None:
        plan = replace(plan, trials=max(search.options.n_trials, len(plan.jobs)))
    folder.refuse_links()
    with alone_in(folder.path):
        return _carry_out(folder, plan, line, search)


def _jobs_again(folder: SweepFolder, plan: Plan, checker: Checker, search: Search | None) -> list[Job]:
    """The jobs of a stored plan with overrides that were checked just now. Raises DataError if they are others."""
    if search is not None:
        return [search.again(job) for job in plan.jobs]
    if len(checker.composed) != len(plan.jobs):
        raise DataError(f"{folder.plan_file} does not stand for its {len(plan.jobs)} jobs: start a new sweep.")
    found = zip(plan.jobs, checker.composed, strict=True)
    return [replace(job, overrides=of_job(composed.overrides)) for job, composed in found]


def newest_like(line: CommandLine) -> SweepFolder:
    """The newest unfinished sweep of the same jobs. Raises ConfigError if there is none."""
    wanted, _ = plan_and_search(line, (), inputs=False)
    for path in sorted((OUTPUTS / "sweep").glob(f"*/{PLAN}"), reverse=True):
        folder = SweepFolder(path.parent)
        try:
            found = folder.read_plan()
        except DataError:
            continue
        if same_jobs(found, wanted) and not folder.is_finished(found):
            return folder
    raise ConfigError(f"resume=auto finds no unfinished sweep of these jobs below {OUTPUTS}: leave resume=auto out.")


def _carry_out(folder: SweepFolder, plan: Plan, line: CommandLine, search: Search | None) -> int:
    """Launch the jobs that are left; the rows that they leave decide the exit code. line: the running command."""
    started = time.monotonic()
    for text in opening(folder, plan):
        say(text)
    left = [job for job in plan.legal if not _is_whole(folder, job)]
    whole = not left and (search is None or folder.is_finished(plan))
    stopped, failure = (0, None) if whole else _launch(folder, plan, left, line, search)
    say("\n".join(closing(folder, plan, time.monotonic() - started)))
    if stopped:
        say(f"Stopped. Go on with: {command('train', f'resume={folder}')}")
        return stopped
    if isinstance(failure, RepqError):
        raise failure
    if failure is not None:  # such as a worker process that was killed
        reason = f"{type(failure).__name__}: {failure}".splitlines()[0].rstrip(".")
        raise RepqError(f"The launcher broke off ({reason}). Go on with: {command('train', f'resume={folder}')}")
    return 0 if folder.is_finished(plan) else 1


def _is_whole(folder: SweepFolder, job: Job) -> bool:
    """Whether nothing is left to do for a job: it is done, and none of its networks is damaged, or it was pruned."""
    own = folder.job(job.number)
    return own.status == "pruned" or (own.status == "done" and damage(own, own.readable_row()) is None)


def _launch(
    folder: SweepFolder, plan: Plan, left: list[Job], line: CommandLine, search: Search | None
) -> tuple[int, Exception | None]:
    """Run the jobs that are ``left``, then those that are proposed, if any are to be.

    The exit code of a stop, or 0, and an error that no row tells of.
    """
    folder.clear_marks()
    hydra = [text for text in plan.overrides if text.lstrip("+").startswith(OF_HYDRA)]
    hydra.append(f"hydra.sweep.dir={quoted(folder.path)}")
    together: Iterable[list[Job]] = iter([left])
    failure, look = None, None
    if search is not None:
        trials = Trials(folder, plan, search.options, search.swept)
        together, look = batches(trials, left, search.job), trials.watch
    with stop_request() as stop, Monitor(folder, plan, stop, look):

        def stopped() -> bool:  # a job may have got the signal, and we did not
            return stop.signal_number is not None or folder.stopped_by is not None

        try:
            with launching("train", JOB, hydra, line, folder.path, stopped) as launch:
                for jobs in together:
                    lost = launch([[*_launched(plan, job), f"hydra.sweep.subdir={job.number}"] for job in jobs])
                    for job, reason in zip(jobs, lost, strict=True):
                        if reason is not None:
                            _tell_loss(folder.job(job.number), reason)
                    if stopped():
                        break
        except Interrupted as interruption:
            return interruption.exit_code, None
        except Exception as error:
            failure = error
    number = stop.signal_number or folder.stopped_by
    return 0 if number is None else 128 + number, failure


def _launched(plan: Plan, job: Job) -> list[str]:
    """The overrides of a job with the saved sweep that it comes from, in its place, since its file may set more."""
    own = list(job.overrides)
    of_all = [text for text in plan.overrides if not text.lstrip("+").startswith(OF_HYDRA)]
    for index, text in enumerate(of_all):
        if text.lstrip("+").startswith("sweep="):
            own.insert(index, text)
    return own


def _tell_loss(folder: RunFolder, reason: str) -> None:
    """The row of a job whose process was killed, and could write none."""
    if folder.status not in ("done", "interrupted"):
        lost = f"Its process ended before it could say why, as a killed one does ({reason})"
        make_folder(folder.path)
        folder.write_row(folder.readable_row() | {"status": "failed", "error": lost})
