"""From a command line to the jobs of a sweep, or to what Optuna may propose as such."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override

from repq_cli.cli.command_line import CommandLine
from repq_cli.cli.config_folder import config_file
from repq_cli.cli.jobs import run_key
from repq_cli.cli.overrides import Checker, Composed
from repq_cli.cli.preflight import refusals
from repq_cli.cli.trial_options import TrialOptions, options_of
from repq_cli.config import Config
from repq_cli.errors import ConfigError, DataError, RepqError
from repq_cli.problems import error_of
from repq_cli.runs.sweep import Job, Plan

OF_HYDRA, NO_PARAMS = ("hydra.", "hydra/"), "hydra.sweeper.params=null"


@dataclass(frozen=True)
class Search:
    """What Optuna is asked for: values of the ``swept`` keys. line: the command line, checked."""

    line: CommandLine
    swept: list[Override]
    options: TrialOptions

    def job(self, number: int, values: Mapping[str, str]) -> Job:
        """The job with such values, by key; one that cannot be run is left out, with the reason."""
        keys = {override.input_line: override.get_key_element() for override in self.swept}
        overrides = [f"{keys[text]}={values[keys[text]]}" if text in keys else text for text in self.line.overrides]
        flags = [] if self.line.config_dir is None else ["--config-dir", self.line.config_dir]
        line = CommandLine(
            flags, [text for text in overrides if not _is_of_search(text)], self.line.config_dir, self.line.typed
        )
        try:
            checker = Checker("train", line)
            checker.check()
        except ConfigError as error:
            return Job(number, of_job(overrides), left_out=str(error))
        return _job(number, replace(checker.composed[0], overrides=of_job(overrides)))

    def again(self, job: Job) -> Job:
        """A job of a stored plan, with nothing of it but the values. Raises DataError where these are missing."""
        texts = dict(text.partition("=")[::2] for text in job.overrides)
        keys = [override.get_key_element() for override in self.swept]
        if not set(keys) <= texts.keys():
            raise DataError(f"The plan of the sweep does not say what job {job.number} varies: start a new sweep.")
        return replace(job, overrides=self.job(job.number, {key: texts[key] for key in keys}).overrides)


def named_folder(line: CommandLine) -> Path | None:
    """The folder that ``hydra.sweep.dir=`` names. Raises ConfigError for keys that a sweep of ours cannot have."""
    named = None
    for override in line.overrides:
        key, _, value = override.lstrip("+").partition("=")
        if key == "hydra.sweep.subdir":
            raise ConfigError("hydra.sweep.subdir cannot be set: the folder of a job is its number.")
        if key.startswith("hydra.sweeper.") and not line.sampled:
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
    return plan_and_search(line, typed, inputs)[0]


def plan_and_search(line: CommandLine, typed: Sequence[str], inputs: bool) -> tuple[Plan, Search | None]:
    """The plan, and where its jobs are not known yet what is searched."""
    line = expanded(line)
    checker = Checker("train", line)
    checked = checker.check()
    if any(composed.config.fast_dev_run for composed in checker.composed):
        raise ConfigError("fast_dev_run=true comes from a file, and a sweep would keep what two steps give: type it.")
    jobs = [_job(number, composed) for number, composed in enumerate(checker.composed)]
    overrides = [text for text in checked.overrides if not text.startswith("hydra.sweep.dir=")]
    flags = checked.flags if checked.has("-m", "--multirun") else [*checked.flags, "-m"]
    plan = Plan(shlex.join(["repq", "train", *typed]), overrides, flags, jobs)
    if not plan.legal:
        raise error_of(checker.composed[0].illegal)
    if inputs:
        plan = _with_inputs(plan, [composed.config for composed in checker.composed])
    search = search_of(checker, checked)
    return (plan if search is None else replace(plan, jobs=[], trials=search.options.n_trials)), search


def search_of(checker: Checker, checked: CommandLine) -> Search | None:
    """What a checked command line has Optuna search; None where its jobs are known."""
    if not checked.sampled:
        return None
    swept = [override for override in checker.overrides if override.is_sweep_override()]
    if not swept:
        raise ConfigError("hydra/sweeper=optuna has nothing to vary: write KEY=A,B or 'KEY=interval(LOW,HIGH)'.")
    return Search(checked, swept, options_of(checker.hydra["sweeper"]))


def _with_inputs(plan: Plan, configs: Sequence[Config]) -> Plan:
    """Leave out what cannot be built, and weights that do not fit the network of a job.

    Raises the error of data, or of a file of weights, that no job can take: that is a mistake and no pair to skip.
    """
    legal = [job.number for job in plan.legal]
    checked = refusals([configs[number] for number in legal], quiet=plan.quiet)
    refused = dict(zip(legal, checked, strict=True))
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
        saved.append(NO_PARAMS)
    return replace(line, overrides=[*saved, *line.overrides])


def _is_of_search(text: str) -> bool:
    """Whether it tells of how values are found; those of a saved sweep are in the line already."""
    return text.startswith(("hydra/sweeper=", "hydra.sweeper.")) and text != NO_PARAMS


def _is_of_sweep(text: str) -> bool:
    return text.lstrip("+").startswith((*OF_HYDRA, "sweep="))


def of_job(overrides: Sequence[str]) -> list[str]:
    """Those that are not of the sweep as a whole."""
    return [text for text in overrides if not _is_of_sweep(text)]


def _job(number: int, composed: Composed) -> Job:
    overrides = of_job(composed.overrides)
    if composed.illegal:
        return Job(number, overrides, left_out=" ".join(map(str, composed.illegal)))
    return Job(number, overrides, key=run_key(composed.config))
