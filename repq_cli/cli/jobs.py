"""What a composed configuration is used for. Imported only when there is something to run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_module

from repq_cli import build
from repq_cli.cli.hydra_app import CONFIGS, plain
from repq_cli.errors import DataError
from repq_cli.modes.catalogue import mode_named, used_rep
from repq_cli.problems import report
from repq_cli.report.row import failure, write_row
from repq_cli.schema import resolved, validate, with_defaults
from repq_cli.train.runner import run


def checked(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with ``auto`` resolved. Raises ConfigError with every problem."""
    problems = validate(config, build.target_arguments)
    if not problems:
        config = resolved(config)
        problems = validate(config, build.target_arguments)
    if problems:
        raise report(problems)
    return config


def train_job(
    config: dict[str, Any], run_dir: str, stop_file: Path | None = None, command_line: str | None = None
) -> float:
    """One run in its folder; its deployed metric. For ``stop_file`` and ``command_line`` see ``run``."""
    folder = _shown(Path(run_dir))
    try:
        experiment = build.experiment(checked(config))
    except Exception as error:
        # A sweep is judged by its rows, so that even a job that could not start leaves one.
        if not (folder / "config.yaml").exists():
            asked = {section: config[section].get("name") for section in ("model", "rep", "mode", "data")}
            write_row(folder, failure(error) | asked | {"quant": config["quant"], "seed": config["seed"]})
        raise
    row = run(experiment, folder, stop_file=stop_file, command_line=command_line)
    return float(row["metric"]["deployed"])


def _shown(folder: Path) -> Path:
    """The folder as a person would type it: relative where it is below the current one."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def stored_config(folder: Path) -> dict[str, Any]:
    """A run folder's config.yaml. Raises DataError if it is missing or damaged."""
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text())
        if not isinstance(config, dict) or not isinstance(config.get("runtime"), dict):
            raise ValueError("it is no configuration of a run")
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(
            f"{folder / 'config.yaml'} cannot be read ({error}): restore it, or start a new run."
        ) from error
    return config


def resume_job(config: dict[str, Any], folder: Path, stop_file: Path | None = None) -> None:
    """Go on with the run in ``folder``."""
    run(build.experiment(checked(with_defaults(config))), folder, resume=True, stop_file=stop_file)


def compose_plain(overrides: Sequence[str]) -> dict[str, Any]:
    """The configuration of a command line, with ``auto`` resolved."""
    with initialize_config_module(CONFIGS, version_base="1.3"):
        return checked(plain(compose("train", overrides=list(overrides))))


def _relevant(config: dict[str, Any]) -> dict[str, Any]:
    """What matters to a run's result, of a configuration with ``auto`` resolved."""
    config = with_defaults(config)
    config |= {"fp": {key: value for key, value in config["fp"].items() if key != "reuse"}}
    return {key: value for key, value in config.items() if key not in ("runtime", "verbosity")}


def same_run(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two configurations describe the same run: all that matters to its result agrees."""
    return _canonical(_relevant(first)) == _canonical(_relevant(second))


def run_key(config: dict[str, Any]) -> str:
    """A hash of what determines a run's result; modes that use no branches have one for all blocks."""
    relevant = _relevant(config)
    if not mode_named(config["mode"]["name"]).uses_branches:
        relevant["rep"] = used_rep(config)
    return hashlib.sha256(_canonical(relevant).encode()).hexdigest()[:16]


def _canonical(config: dict[str, Any]) -> str:
    """As text: a file knows lists where a composed configuration may have tuples."""
    return json.dumps(config, sort_keys=True)
