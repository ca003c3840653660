"""The configuration's types, and every problem of a configuration at once. Knows neither torch nor Hydra."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from repq_cli.bounds import Range
from repq_cli.combinations import COMBINATIONS
from repq_cli.errors import ConfigError
from repq_cli.modes.auto import resolve_mode
from repq_cli.modes.options import ModeOptions
from repq_cli.problems import Problem
from repq_cli.quant.options import QuantOptions, signs_of_activations
from repq_cli.train.options import OptimOptions, RuntimeOptions, ScheduleOptions, StageOptions
from repq_cli.typecheck import annotations_of, mistake, nearest

MISSING = "???"

Verbosity = Literal["quiet", "normal", "debug"]


@dataclass(frozen=True)
class ModelSection:
    """Keys of ``model`` beside the arguments of its ``_target_``; a ``scale`` among those makes it enlarge pictures."""

    _target_: str
    name: str
    num_classes: Annotated[int, Range(2)] | None = None


@dataclass(frozen=True)
class RepSection:
    """Keys of ``rep`` beside the arguments of its ``_target_``.

    batch_norm: whether its blocks have any; an argument of those ``_target_`` that leave the choice.
    kernels: the sizes of the convolutions that become blocks; all others stay ordinary ones.
    """

    _target_: str
    name: str
    batch_norm: bool
    kernels: list[Annotated[int, Range(1)]]


@dataclass(frozen=True)
class DataSection:
    """Keys of ``data`` beside the arguments of its ``_target_``."""

    _target_: str
    name: str
    batch_size: Annotated[int, Range(2)] = 64


@dataclass(frozen=True)
class Config:
    """The whole tree. A section with a ``_target_`` also takes that function's arguments.

    psnr_rounding: (super-resolution) pictures are rounded to 8 bit before they are measured; false: ECBSR's own rule.
    input_shape: (``repq info`` only) channels, rows and columns of the images to count for, instead of the data's.
    """

    model: ModelSection
    rep: RepSection
    data: DataSection
    quant: QuantOptions
    mode: ModeOptions
    fp: StageOptions
    qat: StageOptions
    optim: OptimOptions
    schedule: ScheduleOptions
    runtime: RuntimeOptions
    task: Literal["classification", "super_resolution"] = "classification"
    psnr_rounding: bool = True
    seed: Annotated[int, Range(0)] = 0
    verbosity: Verbosity = "normal"
    plugins: list[str] = dataclasses.field(default_factory=list)
    input_shape: tuple[Annotated[int, Range(1)], Annotated[int, Range(1)], Annotated[int, Range(1)]] | None = None


@dataclass(frozen=True)
class EvalConfig:
    """The keys of ``repq eval``; ``engine``: which of the run's networks, null for the first three.

    What ``data`` brings beside its own section, such as a recipe, has no meaning here.
    """

    run: str
    data: DataSection | None
    runtime: RuntimeOptions
    engine: Literal["fp", "fake", "deployed", "integer", "onnx", "xnor"] | None = None
    psnr_rounding: bool | None = None
    verbosity: Verbosity = "normal"
    plugins: list[str] = dataclasses.field(default_factory=list)


# The keys of each command. ``in``, which no dataclass can have, makes one of them a dictionary.
KEYS: dict[str, dict[str, Any]] = {
    "train": annotations_of(Config),
    "info": annotations_of(Config),
    "eval": annotations_of(EvalConfig),
    "export": {
        "run": str,
        "format": Literal["onnx", "packed"],
        "biases": Literal["auto", "int32", "float"],
        "reduce_range": bool,
        "out": str | None,
        "threads": Annotated[int, Range(1, 1024)] | None,
    },
    "bench": {
        "bench": Literal["infer", "xnor"],
        "runs": str | list[str],
        "batch": Annotated[int, Range(1)] | list[Annotated[int, Range(1)]],
        "size": Annotated[int, Range(1)] | None,
        "rounds": Annotated[int, Range(1)],
        "threads": Annotated[int, Range(1, 1024)] | None,
        "out": str | None,
    },
    "diagnose": {
        "run": str,
        "images": Annotated[int, Range(1)],
        "out": str | None,
        "device": str,
        "threads": Annotated[int, Range(1, 1024)] | None,
        "verbosity": Verbosity,
    },
    "upscale": {
        "run": str,
        "in": str | list[str],
        "out": str,
        "overwrite": bool,
        "device": str,
        "threads": Annotated[int, Range(1, 1024)] | None,
        "tile": Annotated[int, Range(64)],
        "verbosity": Verbosity,
        "plugins": list[str],
    },
}


# Arguments of a section's target that the configuration sets: given the target's name, their annotations.
TargetArguments = Callable[[str, str, list[str]], dict[str, Any]]


def validate(
    config: dict[str, Any], target_arguments: TargetArguments, combinations: bool = True, command: str = "train"
) -> list[Problem]:
    """Every unknown key, wrong type, value out of range and (if asked) illegal combination of a configuration."""
    problems = list(_section("", config, KEYS[command], config, target_arguments))
    wrong = {problem.key.partition(".")[0] for problem in problems}
    for sections, rule in COMBINATIONS:
        if combinations and not wrong & sections:
            problems += rule(config)
    return problems


def _section(
    prefix: str, values: dict[str, Any], annotations: dict[str, Any], config: dict[str, Any], arguments: TargetArguments
) -> Iterator[Problem]:
    for key in annotations:
        if key not in values and prefix == "" and dataclasses.is_dataclass(annotations[key]):
            yield Problem(key, MISSING, "is missing from the configuration")
    for key, value in values.items():
        path = f"{prefix}{key}"
        if key not in annotations:
            near = nearest(key, annotations)
            legal = f"did you mean '{prefix}{near}'?" if near else f"legal keys: {', '.join(annotations)}"
            yield Problem(path, value, f"is an unknown key; {legal}".rstrip("."))
        elif (section := _section_type(annotations[key])) and not (value is None and section is not annotations[key]):
            yield from _subtree(path, value, section, config, arguments)
        elif value == MISSING:
            yield Problem(path, value, f"has to be set: it must be {describe_for_missing(annotations[key])}")
        else:
            wrong = mistake(annotations[key], value)
            if wrong:
                yield Problem(path, value, wrong)


def _section_type(annotation: Any) -> Any:
    """The dataclass that ``annotation`` is, alone or as one that may be null; None where it is of another kind."""
    options = (annotation, *typing.get_args(annotation))
    return next((option for option in options if isinstance(option, type) and dataclasses.is_dataclass(option)), None)


def describe_for_missing(annotation: Any) -> str:
    """The legal values of a key that has no default."""
    return (mistake(annotation, object()) or "").removeprefix("must be ")


def _subtree(
    path: str, value: Any, section: Any, config: dict[str, Any], arguments: TargetArguments
) -> Iterator[Problem]:
    if not isinstance(value, dict):
        yield Problem(
            path, value, f"must be a group option or a section with keys {', '.join(annotations_of(section))}"
        )
        return
    annotations = annotations_of(section)
    if "_target_" in annotations and isinstance(value.get("_target_"), str):
        try:
            plugins = config.get("plugins") or []
            # An argument's own annotation is the narrower one.
            annotations = annotations | arguments(path, value["_target_"], plugins)
        except ConfigError as error:
            yield Problem(f"{path}._target_", value["_target_"], str(error))
            return
    yield from _section(f"{path}.", value, annotations, config, arguments)


def with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with keys that it lacks, as a file of an earlier version does, at their defaults."""
    config = {"task": Config.task, "psnr_rounding": Config.psnr_rounding, **config}
    for section, annotation in annotations_of(Config).items():
        if dataclasses.is_dataclass(annotation) and isinstance(config.get(section), dict):
            fields = dataclasses.fields(annotation)
            defaults = {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}
            if "_target_" not in annotations_of(annotation):
                config[section] = defaults | config[section]
    return config


def resolved(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with what it leaves to us decided.

    ``mode=auto``, ``fp.merged_training=auto``, and hard tanh where activations are signs.
    """
    config = config | {"mode": config["mode"] | {"name": resolved_mode(config)}}
    if config["fp"].get("merged_training", "auto") == "auto":
        config |= {"fp": config["fp"] | {"merged_training": not config["rep"]["batch_norm"]}}
    model, quant = config["model"], config["quant"]
    if model.get("activation", "") is None and signs_of_activations(quant):
        config |= {"model": model | {"activation": "hardtanh"}}
    return config


def resolved_mode(config: dict[str, Any]) -> str:
    """What the configuration's mode is once ``auto`` is decided."""
    rep = config["rep"]
    return resolve_mode(config["mode"]["name"], rep["name"], rep["batch_norm"], config["quant"]["weight_bits"])
