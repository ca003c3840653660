"""What a composed configuration is used for. Imported only when there is something to run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

from repq_cli import build
from repq_cli.build import checked
from repq_cli.cli import preflight
from repq_cli.cli.composing import Loader
from repq_cli.cli.figures import no_pictures, pictures_of
from repq_cli.cli.hydra_app import plain
from repq_cli.config import Config
from repq_cli.effects import Affects
from repq_cli.errors import ConfigError
from repq_cli.ranks import place
from repq_cli.runs.folder import RunFolder
from repq_cli.runs.row import deployed_metric, failure
from repq_cli.train.extension import Extension
from repq_cli.train.interrupt import Mark
from repq_cli.train.runner import run


def run_job(tree: dict[str, Any]) -> float:
    """A run in the folder that Hydra made for it; its deployed metric."""
    return train(checked(tree), RunFolder(_shown(Path(HydraConfig.get().runtime.output_dir))))


def train(
    config: Config,
    folder: RunFolder,
    stop_file: Mark | None = None,
    command_line: str | None = None,
    beside: RunFolder | None = None,
) -> float:
    """One run in its folder; its deployed metric. For ``stop_file``, ``command_line`` and ``beside`` see ``run``."""
    if place() is None and config.runtime.devices > 1:
        raise ConfigError(
            f"runtime.devices={config.runtime.devices} is for repq train of one run, which starts so many processes; "
            f"use runtime.devices=1 here."
        )
    try:
        experiment = preflight.taken(config)
    except Exception as error:
        # A sweep is judged by its rows, so that even a job that could not start leaves one.
        if not folder.is_used:
            asked = {
                "model": config.model.name,
                "rep": config.rep.name,
                "mode": config.mode.name,
                "data": config.data.name,
                "quant": asdict(config.quant),
                "seed": config.seed,
            }
            folder.write_row(failure(error) | asked)
        raise
    figures = no_pictures if config.fast_dev_run else pictures_of  # of two steps there is nothing to see
    row = run(experiment, folder.path, stop_file=stop_file, command_line=command_line, figures=figures, beside=beside)
    return deployed_metric(row)


def _shown(folder: Path) -> Path:
    """The folder as a person would type it: relative where it is below the current one."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def resume_job(
    folder: RunFolder,
    config: Config,
    stop_file: Mark | None = None,
    beside: RunFolder | None = None,
    extended: Extension | None = None,
) -> None:
    """Go on with the run in ``folder``, whose ``config`` was read there; ``extended``: with what is changed of it."""
    run(
        build.experiment(config),
        folder.path,
        resume=True,
        stop_file=stop_file,
        figures=pictures_of,
        beside=beside,
        extended=extended,
    )


def compose_plain(overrides: Sequence[str]) -> Config:
    """The configuration of a command line, with ``auto`` resolved."""
    tree = Loader("train").compose("train", overrides)
    with open_dict(tree):
        del tree["hydra"]
    return checked(plain(tree))


def same_run(first: Config, second: Config) -> bool:
    """Whether two configurations describe the same run: all that matters to its result agrees."""
    return _canonical(_relevant(first)) == _canonical(_relevant(second))


def same_data(first: Config, second: Config) -> bool:
    """Whether two configurations read the same data in the same way."""

    def reading(config: Config) -> str:
        model = config.model.arguments
        data = _relevant(config)["data"]
        return _canonical({"data": data, "scale": model.get("scale"), "colour": model.get("colour")})

    return reading(first) == reading(second)


def run_key(config: Config) -> str:
    """A hash of what determines a run's result; modes that use no branches have one for all blocks."""
    relevant = _relevant(config)
    if not config.mode.rule.uses_branches:
        relevant["rep"] = config.used_rep
    return hashlib.sha256(_canonical(relevant).encode()).hexdigest()[:16]


def _relevant(config: Config) -> dict[str, Any]:
    """What matters to a run's result, of a configuration with ``auto`` resolved."""
    return config.selected(*(set(Affects) - {Affects.NOTHING}))


def _canonical(keys: dict[str, Any]) -> str:
    return json.dumps(keys, sort_keys=True)
