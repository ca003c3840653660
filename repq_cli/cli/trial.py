"""``repq train fast_dev_run=true``: two steps of everything that a run, or each run of a sweep, would do."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from repq_cli.cli.command_line import CommandLine
from repq_cli.cli.overrides import Checker, Composed
from repq_cli.cli.terminal import complaint, say
from repq_cli.config import Config
from repq_cli.errors import ConfigError, RepqError
from repq_cli.problems import error_of
from repq_cli.runs.folder import RunFolder

KEY = "fast_dev_run"


def is_asked_for(line: CommandLine) -> bool:
    """Whether the command line has the key, be it with a value that is refused later."""
    return any(text.lstrip("+").partition("=")[::2] != (KEY, "false") for text in line.overrides if KEY in text)


def try_out(line: CommandLine) -> int:
    """Check the command line and carry out its trial; the exit code."""
    from repq_cli.cli.sweep_plan import expanded

    named = [text for text in line.overrides if text.lstrip("+").startswith(("hydra.run.dir=", "hydra.sweep.dir="))]
    if named:
        raise ConfigError(f"{named[0]} names a folder, and a trial keeps nothing: leave it out, or fast_dev_run.")
    checker = Checker("train", expanded(line) if line.multirun else line)
    checker.check()
    return carry_out(checker.composed)


def carry_out(composed: Sequence[Composed]) -> int:
    """Two steps of each run, in folders that are removed at the end.

    What is wrong with a single one is raised; of several it is printed, and the first one's exit code is returned.
    """
    configs = [each.config for each in composed if not each.illegal]
    if not configs:
        raise error_of(composed[0].illegal)
    codes = []
    with TemporaryDirectory(prefix="repq-trial-", ignore_cleanup_errors=True) as top:
        for number, config in enumerate(configs):
            started = time.perf_counter()
            try:
                _try(config, RunFolder(Path(top, str(number))))
            except RepqError as error:
                if len(configs) == 1:
                    raise
                codes.append(error.exit_code)
                complaint(f"{_name(config)}: {error}")
            else:
                _say(config, f"{_name(config)}: works, {time.perf_counter() - started:.1f} s")
    _say(
        configs[0],
        f"fast_dev_run: {len(configs) - len(codes)} of {len(configs)} ran two steps of all that a run does, "
        "on a few images; nothing is kept.",
    )
    return codes[0] if codes else 0


def _try(config: Config, folder: RunFolder) -> None:
    from repq_cli.cli.jobs import train
    from repq_cli.cli.preflight import prepare

    quiet = config.verbosity if config.verbosity == "debug" else "quiet"
    # A compiler alone takes longer than all else, searches for the best steps as long, and two images are not divided.
    runtime = replace(config.runtime, compile=False, devices=1, accumulate=1)
    quant, qat = replace(config.quant, init="lsq"), replace(config.qat, steps_within=None)
    config = replace(config, verbosity=quiet, runtime=runtime, quant=quant, qat=qat)
    prepare(config)
    train(config, folder)


def _name(config: Config) -> str:
    return (
        f"{config.model.name}, rep {config.rep.name}, mode {config.mode.name}, {config.quant.label}, {config.data.name}"
    )


def _say(config: Config, text: str) -> None:
    if config.verbosity != "quiet":
        say(text)
