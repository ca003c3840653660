"""``repq train``: a run, a sweep, or the continuation of either."""

from __future__ import annotations

from repq_cli.cli import trial
from repq_cli.cli.command_line import CommandLine
from repq_cli.cli.hydra_app import run_app, show
from repq_cli.cli.launch import launch
from repq_cli.cli.overrides import Checker
from repq_cli.cli.ranks import as_rank, begun_before, processes_to_start, refuse_what_ranks_cannot
from repq_cli.cli.resume import go_on
from repq_cli.config import may_change
from repq_cli.ranks import place


def train(job: str, arguments: list[str]) -> int:
    """A run by ``job``, a sweep with ``-m``, or what ``resume=`` names. Returns the exit code."""
    where = place()
    return _train(job, arguments) if where is None else as_rank(where, lambda: _train(job, arguments))


def _train(job: str, arguments: list[str]) -> int:
    line = CommandLine.parse(arguments)
    if line.only_shows:
        return show("train", fit_shown(line))
    if (begun := begun_before()) is not None:
        line.overrides = [text for text in line.overrides if may_change(text.partition("=")[0])]
        return go_on(str(begun), line)
    resume = [override for override in line.overrides if override.lstrip("+").startswith("resume=")]
    if resume:
        line.overrides = [override for override in line.overrides if override not in resume]
        return go_on(resume[-1].partition("=")[2], line)
    if trial.is_asked_for(line):
        return trial.try_out(line)
    refuse_what_ranks_cannot(line)
    if not line.multirun:
        checker = Checker("train", line)
        checked = checker.check()
        config = checker.composed[0].config
        if config.fast_dev_run:
            return trial.carry_out(checker.composed)
        if (processes := processes_to_start(config, line.typed_keys)) > 1:
            return launch(processes, arguments, config.runtime.restarts)
        from repq_cli.cli.preflight import prepare

        prepare(config)
        run_app("train", job, checked, checker.loader)
        return 0
    from repq_cli.cli import sweep

    return sweep.start(line, arguments)


def fit_shown(line: CommandLine) -> list[str]:
    """Arguments for ``--cfg`` and the like: checked where a model is named, else as they are."""
    if line.has("--hydra-help"):  # is about Hydra alone, and trips over a model
        return line.flags
    named = any(override.lstrip("+").startswith(("model=", "experiment=")) for override in line.overrides)
    checker = Checker("train", line)
    return checker.check().arguments if named else checker.check_shown()
