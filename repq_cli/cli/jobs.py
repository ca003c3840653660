"""What a composed configuration is used for. Imported only when there is something to run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.hydra_config import HydraConfig

from repq_cli import build
from repq_cli.build import checked
from repq_cli.cli import preflight
from repq_cli.cli.figures import pictures_of
from repq_cli.cli.hydra_app import CONFIGS, plain
from repq_cli.modes.catalogue import mode_named, used_rep
from repq_cli.runs.folder import RunFolder
from repq_cli.runs.row import deployed_metric, failure
from repq_cli.schema import with_defaults
from repq_cli.train.runner import run


def run_job(config: dict[str, Any]) -> float:
    """A run in the folder that Hydra made for it; its deployed metric."""
    return train(config, RunFolder(_shown(Path(HydraConfig.get().runtime.output_dir))))


def train(
    config: dict[str, Any],
    folder: RunFolder,
    stop_file: Path | None = None,
    command_line: str | None = None,
    beside: RunFolder | None = None,
) -> float:
    """One run in its folder; its deployed metric. For ``stop_file``, ``command_line`` and ``beside`` see ``run``."""
    try:
        experiment = preflight.taken(checked(config))
    except Exception as error:
        # A sweep is judged by its rows, so that even a job that could not start leaves one.
        if not folder.is_used:
            asked = {section: config[section].get("name") for section in ("model", "rep", "mode", "data")}
            folder.write_row(failure(error) | asked | {"quant": config["quant"], "seed": config["seed"]})
        raise
    row = run(
        experiment, folder.path, stop_file=stop_file, command_line=command_line, figures=pictures_of, beside=beside
    )
    return deployed_metric(row)


def _shown(folder: Path) -> Path:
    """The folder as a person would type it: relative where it is below the current one."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def resume_job(
    folder: RunFolder, config: dict[str, Any], stop_file: Path | None = None, beside: RunFolder | None = None
) -> None:
    """Go on with the run in ``folder``, whose ``config`` was read there."""
    experiment = build.experiment(checked(with_defaults(config)))
    run(experiment, folder.path, resume=True, stop_file=stop_file, figures=pictures_of, beside=beside)


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


def same_data(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two configurations read the same data in the same way."""

    def reading(config: dict[str, Any]) -> str:
        model = config["model"]
        return _canonical({"data": config["data"], "scale": model.get("scale"), "colour": model.get("colour")})

    return reading(first) == reading(second)


def run_key(config: dict[str, Any]) -> str:
    """A hash of what determines a run's result; modes that use no branches have one for all blocks."""
    relevant = _relevant(config)
    if not mode_named(config["mode"]["name"]).uses_branches:
        relevant["rep"] = used_rep(config)
    return hashlib.sha256(_canonical(relevant).encode()).hexdigest()[:16]


def _canonical(config: dict[str, Any]) -> str:
    """As text: a file knows lists where a composed configuration may have tuples."""
    return json.dumps(config, sort_keys=True)
