"""``resume=``: a run or a sweep goes on in its folder; ``resume=auto`` finds it by its configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from repq_cli.cli.command_line import CommandLine
from repq_cli.cli.launch import launch
from repq_cli.cli.overrides import Checker
from repq_cli.cli.ranks import processes_to_start, refuse_what_ranks_cannot
from repq_cli.config import CHANGEABLE, may_change
from repq_cli.errors import ConfigError, DataError
from repq_cli.runs.folder import CONFIG, RunFolder
from repq_cli.runs.outputs import OUTPUTS
from repq_cli.runs.sweep import PLAN, SweepFolder

EXTENDABLE = ("fp.epochs", "fp.patience", "qat.epochs", "qat.patience")


def go_on(target: str, line: CommandLine) -> int:
    """Go on with the run or the sweep in ``target``; ``auto`` is the newest unfinished one of the same configuration.

    ``line``: what else was given, which may change how it is carried out. Returns the exit code.
    """
    from repq_cli.cli import sweep

    changes = [text for text in line.overrides if not text.lstrip("+").startswith("plugins=")]
    if len(target) > 1 and target[0] == target[-1] and target[0] in "\"'":  # as other keys take it
        target = target[1:-1]
    if not target:
        raise ConfigError("resume= names nothing: name the folder of a run or a sweep, or auto.")
    if target == "auto":
        if not any(text.lstrip("+").startswith(("model=", "experiment=", "sweep=")) for text in changes):
            raise ConfigError(
                "resume=auto goes behind the whole command that was stopped: repq train +model=… resume=auto"
            )
        target = str(sweep.newest_like(line) if line.multirun else _newest_like(line))
        changes = [text for text in line.overrides if may_change(_key(text)) or text.startswith("hydra/launcher")]
    if SweepFolder(target).is_used:
        refuse_what_ranks_cannot(line, is_sweep=True)
        return sweep.resume(SweepFolder(target), changes, line.plugins)
    return _resume_run(RunFolder(target), changes, line)


def _resume_run(folder: RunFolder, changes: Sequence[str], line: CommandLine) -> int:
    from repq_cli.build import stored
    from repq_cli.cli.jobs import resume_job
    from repq_cli.train.extension import extension

    if not folder.config_file.is_file():
        raise DataError(
            f"resume={folder} is no folder of a run or a sweep: it holds neither {CONFIG} nor {PLAN}; "
            f"name one below {OUTPUTS}."
        )
    begun = stored(folder, line.plugins, _changed([text for text in changes if _key(text) not in EXTENDABLE]))
    config = stored(folder, line.plugins, _changed(changes))
    extended = extension(folder, begun, config)
    if extended is not None and SweepFolder(folder.path.parent).is_used:
        raise ConfigError(
            f"{folder} is a job of a sweep, whose jobs stay as they were planned: start a new run with "
            f"{' '.join(changes)}."
        )
    if (processes := processes_to_start(config, line.typed_keys)) > 1:
        plugins = [text for text in line.overrides if text.lstrip("+").startswith("plugins=")]
        return launch(processes, [f"resume={folder}", *changes, *plugins], config.runtime.restarts)
    resume_job(folder, config, extended=extended)
    return 0


def _changed(overrides: Sequence[str]) -> dict[str, Any]:
    """What is said of ``runtime.*`` and ``verbosity``, as a tree; its keys are checked with all others."""
    found: dict[str, Any] = {}
    for override in overrides:
        key, text = _key(override), override.partition("=")[2]
        section, _, name = key.partition(".")
        if key == "verbosity":
            found[key] = text
        elif may_change(key) or key in EXTENDABLE:
            try:
                found.setdefault(section, {})[name] = yaml.safe_load(text)
            except (yaml.YAMLError, ValueError, RecursionError) as error:
                raise ConfigError(f"{override} cannot be read: write it as runtime.threads=2.") from error
        else:
            raise ConfigError(
                f"{override} cannot be changed by resume=: start a new run for it. What can be changed: {CHANGEABLE}, "
                f"and {', '.join(EXTENDABLE)}."
            )
    return found


def _key(override: str) -> str:
    return override.lstrip("+").partition("=")[0]


def _newest_like(line: CommandLine) -> RunFolder:
    """The newest run folder whose configuration is that of this command line and which is not done."""
    from repq_cli.build import stored
    from repq_cli.cli.jobs import same_run

    checker = Checker("train", line)
    checker.check()
    wanted = checker.composed[0].config
    for path in sorted((OUTPUTS / "train").glob(f"*/{CONFIG}"), reverse=True):
        folder = RunFolder(path.parent)
        try:
            config = stored(folder, wanted.plugins)
        except (ConfigError, DataError):
            continue
        if folder.status != "done" and same_run(config, wanted):
            return folder
    raise ConfigError(
        f"resume=auto finds no unfinished run of this configuration below {OUTPUTS}: leave resume=auto out."
    )
