"""A sweep from the outside: its plan, its launch, its end, and how it goes on."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from repq_cli.cli.command_line import CommandLine
from repq_cli.cli.composing import Loader
from repq_cli.cli.config_folder import config_file
from repq_cli.cli.hydra_app import run_app
from repq_cli.cli.jobs import run_key
from repq_cli.cli.monitor import Monitor
from repq_cli.cli.overrides import Checker, Composed
from repq_cli.cli.preflight import refusals
from repq_cli.cli.terminal import say
from repq_cli.config import CHANGEABLE, Config, may_change
from repq_cli.errors import ConfigError, DataError, Interrupted, RepqError
from repq_cli.files import make_folder
from repq_cli.problems import error_of
from repq_cli.runs.folder import alone_in
from repq_cli.runs.outputs import OUTPUTS, reserve
from repq_cli.runs.sweep import PLAN, Job, Plan, SweepFolder, same_jobs
from repq_cli.text import command
from repq_cli.train.interrupt import stop_request
from repq_cli.train.mending import damage

JOB = "repq_cli.cli.sweep_job:sweep_job"  # by name, because it is looked up in a launcher's processes


def start(line: CommandLine, typed: Sequence[str]) -> int:
    """Run every job of a new sweep; ``typed``: the arguments as the user gave them. Returns the exit code."""
    named = _named_folder(line)
    plan = plan_of(line, typed, inputs=True)
    folder = SweepFolder(named or reserve(OUTPUTS / "sweep", "train"))
    make_folder(folder.path)
    with alone_in(folder.path):
        if folder.is_used:
            raise ConfigError(
                f"{folder} holds a sweep already: go on with it by {command('train', f'resume={folder}')}, or name "
                f"another folder."
            )
        folder.write_plan(plan)
        return _carry_out(folder, plan, line.plugins)


def _named_folder(line: CommandLine) -> Path | None:
    """The folder that ``hydra.sweep.dir=`` names. Raises ConfigError for keys that a sweep of ours cannot have."""
    named = None
    for override in line.overrides:
        key, _, value = override.lstrip("+").partition("=")
        if key == "hydra.sweep.subdir":
            raise ConfigError("hydra.sweep.subdir cannot be set: the folder of a job is its number.")
        if key.startswith("hydra.sweeper."):
            raise ConfigError(f"{key} cannot be set: write the values as KEY=A,B, or into a sweep/NAME.yaml.")
        if key == "hydra.sweep.dir":
            value = value.strip("'\"")
            if not value or "${" in value or "," in value:
                raise ConfigError(f"hydra.sweep.dir={value} names no single folder: leave it out, or name one.")
            named = Path(value)
    return named


def plan_of(line: CommandLine, typed: Sequence[str] = (), inputs: bool = False) -> Plan:
    """The jobs of a command line. Raises ConfigError if something in it is wrong, or no combination is legal.

    inputs: also read what the jobs start from; see ``_with_inputs``.
    """
    checker = Checker("train", expanded(line))
    checked = checker.check()
    if any(composed.config.fast_dev_run for composed in checker.composed):
        raise ConfigError("fast_dev_run=true comes from a file, and a sweep would keep what two steps give: type it.")
    jobs = [_job(number, composed) for number, composed in enumerate(checker.composed)]
    overrides = [text for text in checked.overrides if not text.startswith("hydra.sweep.dir=")]
    flags = checked.flags if checked.has("-m", "--multirun") else [*checked.flags, "-m"]
    plan = Plan(shlex.join(["repq", "train", *typed]), overrides, flags, jobs)
    if not plan.legal:
        raise error_of(checker.composed[0].illegal)
    return _with_inputs(plan, [composed.config for composed in checker.composed]) if inputs else plan


def _with_inputs(plan: Plan, configs: Sequence[Config]) -> Plan:
    """Leave out what cannot be built, and weights that do not fit the network of a job.

    Raises the error of data, or of a file of weights, that no job can take: that is a mistake and no pair to skip.
    """
    legal = [job.number for job in plan.legal]
    refused = dict(zip(legal, refusals([configs[number] for number in legal]), strict=True))
    inputs: list[Callable[[Config], object]] = [lambda config: config.data, lambda config: config.fp.checkpoint]
    for input_of in inputs:
        errors: dict[str, list[RepqError | None]] = {}
        for number, error in refused.items():
            errors.setdefault(str(input_of(configs[number])), []).append(error)
        for of_one_input in errors.values():
            if of_one_input[0] is not None and None not in of_one_input:
                raise of_one_input[0]
    reasons = {number: str(error) for number, error in refused.items() if error is not None}
    jobs = [replace(job, key=None, left_out=reasons[job.number]) if job.number in reasons else job for job in plan.jobs]
    return replace(plan, jobs=jobs)


def expanded(line: CommandLine) -> CommandLine:
    """The values of a saved sweep as if they had been typed; what the command line says of the same keys wins."""
    names = [override.partition("=")[2] for override in line.overrides if override.lstrip("+").startswith("sweep=")]
    given = {override.lstrip("+").partition("=")[0] for override in line.overrides}
    saved: list[str] = []
    for name in (name.removesuffix(".yaml") for name in names):
        if len(names) > 1 or not re.fullmatch(r"[\w-]+", name):
            raise ConfigError(f"sweep={name} names no single saved sweep: name one, and write other values as KEY=A,B.")
        content = config_file(f"sweep/{name}.yaml", line.config_dir)
        params: Any = content
        for key in ("hydra", "sweeper", "params"):
            params = params.get(key) if isinstance(params, dict) else None
        if not content:
            continue  # there is no such file, which is said with the names of those that there are
        if not isinstance(params, dict):
            raise ConfigError(f"sweep={name} names no values of keys, below hydra: sweeper: params: as others have it.")
        chosen = given | ({"experiment"} if "model" in given else set())
        saved += [f"{key}={values}" for key, values in params.items() if key not in chosen]
    if names:
        saved.append("hydra.sweeper.params=null")
    return replace(line, overrides=[*saved, *line.overrides])


def _job(number: int, composed: Composed) -> Job:
    overrides = [text for text in composed.overrides if not text.lstrip("+").startswith(("hydra.", "hydra/", "sweep="))]
    if composed.illegal:
        return Job(number, overrides, left_out=" ".join(map(str, composed.illegal)))
    return Job(number, overrides, key=run_key(composed.config))


def resume(folder: SweepFolder, changes: Sequence[str], plugins: Sequence[str]) -> int:
    """Go on with a sweep: finished jobs are skipped, stopped ones go on, failed ones are tried again.

    What its plan says is checked as if it had been typed, but that it names no ``plugins``.
    """
    plan = folder.read_plan()
    changed = {change.lstrip("+").partition("=")[0] for change in changes}
    for key in sorted(changed):
        if not (may_change(key) or key.startswith(("hydra/launcher", "hydra.launcher."))):
            raise ConfigError(
                f"{key} cannot be changed by resume=, only hydra/launcher, {CHANGEABLE} can: start a new sweep."
            )
        if key in plan.varied:
            raise ConfigError(f"{key} is what this sweep varies: start a new sweep.")
    kept = [text for text in plan.overrides if text.lstrip("+").partition("=")[0] not in changed]
    typed = [*changes, *(f"plugins={name}" for name in plugins)]
    if changes:  # which are those of a run, whatever the plan's own are
        one_run = [text for text in plan.legal[0].overrides if text.lstrip("+").partition("=")[0] not in changed]
        Checker("train", CommandLine(overrides=[*one_run, *changes], typed=typed)).check()
    line = CommandLine.parse([*kept, *changes, *plan.flags])
    line.typed = typed
    if line.only_shows or not line.multirun:
        raise DataError(f"{folder.plan_file} is no plan of a sweep (flags {' '.join(plan.flags)}): start a new sweep.")
    Checker("train", line).check()
    with alone_in(folder.path):
        return _carry_out(folder, replace(plan, overrides=[*kept, *changes]), plugins)


def newest_like(line: CommandLine) -> SweepFolder:
    """The newest unfinished sweep of the same jobs. Raises ConfigError if there is none."""
    wanted = plan_of(line)
    for path in sorted((OUTPUTS / "sweep").glob(f"*/{PLAN}"), reverse=True):
        folder = SweepFolder(path.parent)
        try:
            found = folder.read_plan()
        except DataError:
            continue
        if same_jobs(found, wanted) and not folder.is_finished(found):
            return folder
    raise ConfigError(f"resume=auto finds no unfinished sweep of these jobs below {OUTPUTS}: leave resume=auto out.")


def _carry_out(folder: SweepFolder, plan: Plan, plugins: Sequence[str]) -> int:
    """Launch the jobs; the rows that they leave decide the exit code."""
    started = time.monotonic()
    for line in _opening(folder, plan):
        say(line)
    stopped, failure = (0, None) if _is_whole(folder, plan) else _launch(folder, plan, plugins)
    say("\n".join(_closing(folder, plan, time.monotonic() - started)))
    if stopped:
        say(f"Stopped. Go on with: {command('train', f'resume={folder}')}")
        return stopped
    if isinstance(failure, RepqError):
        raise failure
    if failure is not None:  # such as a worker process that was killed
        reason = f"{type(failure).__name__}: {failure}".splitlines()[0].rstrip(".")
        raise RepqError(f"The launcher broke off ({reason}). Go on with: {command('train', f'resume={folder}')}")
    return 0 if folder.is_finished(plan) else 1


def _is_whole(folder: SweepFolder, plan: Plan) -> bool:
    """Whether every job is done and none of their networks is damaged."""
    return folder.is_finished(plan) and not any(damage(folder.job(job.number)) for job in plan.legal)


def _launch(folder: SweepFolder, plan: Plan, plugins: Sequence[str]) -> tuple[int, Exception | None]:
    """Run the jobs; the exit code of a stop, or 0, and an error that no row tells of."""
    folder.clear_marks()
    line = CommandLine.parse([*plan.overrides, f"hydra.sweep.dir={_quoted(folder.path)}", *plan.flags])
    line.typed = [f"plugins={name}" for name in plugins]
    failure = None
    with stop_request() as stop, Monitor(folder, plan, stop):
        try:
            run_app("train", JOB, line, Loader("train", line.config_dir))
        except Interrupted as interruption:
            return interruption.exit_code, None
        except Exception as error:
            failure = error
    number = stop.signal_number or folder.stopped_by  # a job may have got the signal, and we did not
    return 0 if number is None else 128 + number, failure


def _quoted(path: Path) -> str:
    """A path as a value of Hydra's, in quotes where it needs them."""
    if re.fullmatch(r"[\w./-]+", str(path)):
        return str(path)
    return "'" + str(path).replace("'", "\\'") + "'"


def _failed(folder: SweepFolder, plan: Plan) -> dict[int, str]:
    """The errors of the jobs that failed."""
    return {number: str(folder.job(number).readable_row().get("error")) for number in folder.numbers(plan, "failed")}


def _closing(folder: SweepFolder, plan: Plan, seconds: float) -> list[str]:
    """Each reason of failures with its jobs and the commands that run them again; then the count."""
    failed, lines = _failed(folder, plan), []
    for reason in dict.fromkeys(failed.values()):
        lines.append(f"failed: {reason}")
        for number in (number for number, error in failed.items() if error == reason):
            lines += [f"  job {number} {plan.label(number)}".rstrip(), f"    {_again(folder, plan, number)}"]
    if len(failed) > 1:
        lines.append(f"all of them: {command('train', f'resume={folder}')}")
    done = len(folder.numbers(plan, "done"))
    count = f"{done} of {len(plan.legal)} runs done, {len(failed)} failed, in {seconds / 60:.1f} min"
    return [*lines, f"{count}, rows in {folder}"]


def _opening(folder: SweepFolder, plan: Plan) -> list[str]:
    """What is about to happen: how many runs, what was done before, what is left out and why."""
    legal = plan.legal
    lines = [f"{len(legal)} run{'s' * (len(legal) != 1)} in {folder}"]
    same = len(legal) - len({job.key for job in legal})
    done = len(folder.numbers(plan, "done"))
    if same:
        lines[0] += f", {same} of them equal to another one"
    if done:
        lines[0] += f", {done} done before"
    for reason in dict.fromkeys(job.left_out for job in plan.jobs if job.left_out):
        numbers = [job.number for job in plan.jobs if job.left_out == reason]
        others = f" and {len(numbers) - 1} more" if len(numbers) > 1 else ""
        lines.append(f"left out: {plan.label(numbers[0])}{others}: {reason}")
    return lines[1:] if plan.quiet else lines


def _again(folder: SweepFolder, plan: Plan, number: int) -> str:
    """The command that runs one job once more, in its place."""
    own = folder.job(number)
    if own.is_used:
        return command("train", f"resume={own}")
    flags = [flag for flag in plan.flags if flag not in ("-m", "--multirun")]
    return shlex.join(["repq", "train", *plan.jobs[number].overrides, f"hydra.run.dir={_quoted(own.path)}", *flags])
