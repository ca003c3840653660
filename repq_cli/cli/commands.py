"""What each command does with its arguments: check them, run its Hydra app, decide the exit code."""

from __future__ import annotations

from collections.abc import Callable

from repq_cli.cli.command_line import CommandLine
from repq_cli.cli.hydra_app import run_app
from repq_cli.cli.overrides import Checker
from repq_cli.cli.resume import go_on
from repq_cli.errors import ConfigError


def evaluate(arguments: list[str]) -> int:
    """``repq eval``."""
    line = CommandLine.parse(arguments)
    keys = [override.lstrip("+~").partition("=")[0] for override in line.overrides]
    if "data" not in keys and any(key.startswith("data.") for key in keys):
        raise ConfigError(
            "Keys of data need data itself: data=NAME data.KEY=VALUE; without any, the run's own is read."
        )
    return _app("eval")(arguments)


def _app(name: str) -> Callable[[list[str]], int]:
    def app(arguments: list[str]) -> int:
        line = CommandLine.parse(arguments)
        return run_app(name, arguments if line.only_shows else Checker(name, line).check().arguments)

    return app


info, export, upscale, bench, diagnose = map(_app, ("info", "export", "upscale", "bench", "diagnose"))


def train(arguments: list[str]) -> int:
    """``repq train``, a sweep with ``-m``, or the continuation of either with ``resume=``."""
    line = CommandLine.parse(arguments)
    if line.only_shows:
        return run_app("train", fit_shown(line))
    resume = [override for override in line.overrides if override.lstrip("+").startswith("resume=")]
    if resume:
        line.overrides = [override for override in line.overrides if override not in resume]
        return go_on(resume[-1].partition("=")[2], line)
    if not line.multirun:
        return run_app("train", Checker("train", line).check().arguments)
    from repq_cli.cli import sweep

    return sweep.start(line, arguments)


def fit_shown(line: CommandLine) -> list[str]:
    """Arguments for ``--cfg`` and the like: checked where a model is named, else as they are."""
    if line.has("--hydra-help"):  # is about Hydra alone, and trips over a model
        return line.flags
    named = any(override.lstrip("+").startswith(("model=", "experiment=")) for override in line.overrides)
    return Checker("train", line).check().arguments if named else line.arguments
