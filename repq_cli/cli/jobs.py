"""What a composed configuration is used for. Imported only when there is something to run."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_module

from repq_cli import build
from repq_cli.cli.hydra_app import CONFIGS, plain
from repq_cli.errors import DataError
from repq_cli.modes.compose import compose as compose_mode
from repq_cli.modes.describe import HEADER, describe_activations, describe_layers
from repq_cli.modes.options import ModeOptions
from repq_cli.quant.options import QuantOptions
from repq_cli.report.row import failure, write_row
from repq_cli.schema import report, resolved_mode, validate
from repq_cli.train.environment import environment
from repq_cli.train.runner import run


def _checked(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with ``auto`` resolved. Raises ConfigError with every problem."""
    problems = validate(config, build.target_arguments)
    if not problems and config["mode"]["name"] == "auto":
        config = config | {"mode": config["mode"] | {"name": resolved_mode(config)}}
        problems = validate(config, build.target_arguments)
    if problems:
        raise report(problems)
    return config


def train_job(config: dict[str, Any], run_dir: str) -> float:
    """One run in its folder; its deployed metric."""
    folder = _shown(Path(run_dir))
    try:
        experiment = build.experiment(_checked(config))
    except Exception as error:
        # A sweep is judged by its rows, so that even a job that could not start leaves one.
        if not (folder / "config.yaml").exists():
            asked = {section: config[section].get("name") for section in ("model", "rep", "mode")}
            write_row(folder, failure(error) | asked | {"quant": config["quant"], "seed": config["seed"]})
        raise
    row = run(experiment, folder)
    return float(row["metric"]["deployed"])


def _shown(folder: Path) -> Path:
    """The folder as a person would type it: relative where it is below the current one."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def resume_job(config: dict[str, Any], folder: Path) -> None:
    """Go on with the run in ``folder``."""
    run(build.experiment(_checked(config)), folder, resume=True)


def compose_plain(overrides: Sequence[str]) -> dict[str, Any]:
    """The configuration of a command line, with ``auto`` resolved."""
    with initialize_config_module(CONFIGS, version_base="1.3"):
        return _checked(plain(compose("train", overrides=list(overrides))))


def same_run(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two configurations describe the same run: all that matters to its result agrees."""

    def relevant(config: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in config.items() if key not in ("runtime", "verbosity")}

    return relevant(first) == relevant(second)


def info_job(config: dict[str, Any]) -> None:
    """Print the network that trains, the network that ships, and the environment."""
    config = _checked(config)
    try:
        data_info = build.data(config).info
    except DataError as error:
        raise DataError(f"{error} (The network's input and classes come from the data.)") from error
    net = build.network_maker(config, data_info)()
    quantized = compose_mode(net, ModeOptions(**config["mode"]), QuantOptions(**config["quant"]))
    merged = compose_mode(net, ModeOptions("merged"), QuantOptions(weight_bits=32, act_bits=32))
    print(f"{config['model']['name']}, rep {config['rep']['name']}, mode {config['mode']['name']}")
    print(f"{data_info.name}: {'x'.join(map(str, data_info.shape))}, {data_info.num_classes} classes\n")
    print(_columns([HEADER, *describe_layers(quantized)]))
    print("\nactivation tensors")
    for width, lines in itertools.groupby(describe_activations(quantized), key=lambda line: line[1]):
        names = [name for name, _ in lines]
        print(f"  {names[0] if len(names) == 1 else f'{names[0]} to {names[-1]}'}: {width}")
    print(f"\nparameters in training  {_count(net):>12,}")
    print(f"parameters merged       {_count(merged):>12,}\n")
    for key, value in environment().items():
        print(f"{key:<10} {_flat(value)}")


def _columns(lines: Sequence[Sequence[str]]) -> str:
    """Lines of words under each other, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    numbers = len(widths) - 2
    return "\n".join(
        "  ".join(
            word.rjust(width) if index >= numbers else word.ljust(width)
            for index, (word, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def _count(net: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
