"""Every problem of a configuration at once, and what it leaves open decided. Knows neither torch nor Hydra."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from repq_cli.combinations import COMBINATIONS
from repq_cli.command_keys import OF_COMMAND
from repq_cli.config import DEFAULTS, Config, keys_of, parsed, required, section_type
from repq_cli.errors import ConfigError
from repq_cli.modes.auto import resolve_identity, resolve_mode, resolve_steps_within
from repq_cli.problems import Problem
from repq_cli.targets import mistake_of_plugin
from repq_cli.typecheck import bare, legal, mistake, nearest

MISSING = "???"
WANTED = {  # what to set a key without a default to, where its type does not tell
    "run": "name the folder of a run that is done",
    "in": "name an image, or a folder of them",
    "out": "name what to write, FILE.csv or FILE.json for predict, a folder for upscale",
    "root": "name a folder with images in train/CLASS",
}
NAME = re.compile(r"\w[\w.+-]{0,99}")  # of what a section is, which is part of the names of runs


# The keys of each command, with their types.
KEYS: dict[str, dict[str, Any]] = {command: keys_of(keys) for command, keys in OF_COMMAND.items()}


# Arguments of a section's target that the configuration sets: given the target's name, their annotations.
TargetArguments = Callable[[str, str, list[str]], dict[str, Any]]


def validate(
    config: dict[str, Any], target_arguments: TargetArguments, combinations: bool = True, command: str = "train"
) -> list[Problem]:
    """Every unknown key, wrong type, value out of range and (if asked) illegal combination of a configuration."""
    lacking = [key for key in required(OF_COMMAND[command]) if key not in config]
    problems = [Problem(key, MISSING, "is missing from the configuration") for key in lacking]
    problems += [*_section("", config, KEYS[command], config, target_arguments), *_plugins(config)]
    wrong = {problem.key.partition(".")[0] for problem in problems}
    whole = {**{key: DEFAULTS[key] for key in ("task", "loss", "score")}, **config}
    for sections, rule in COMBINATIONS:
        if combinations and not wrong & set(sections):
            problems += rule(*(parsed(KEYS[command][section], whole[section]) for section in sections))
    return problems


def _plugins(config: dict[str, Any]) -> Iterator[Problem]:
    for name in _named(config):
        if wrong := mistake_of_plugin(name):
            yield Problem("plugins", name, wrong)


def _named(config: dict[str, Any]) -> list[str]:
    names: list[str] = config.get("plugins") or []
    return names if legal(list[str], names) else []


def _section(
    prefix: str, values: dict[str, Any], annotations: dict[str, Any], config: dict[str, Any], arguments: TargetArguments
) -> Iterator[Problem]:
    for key, value in values.items():
        path = f"{prefix}{key}"
        if key not in annotations:
            near = nearest(key, annotations)
            hint = f"did you mean '{prefix}{near}'?" if near else f"legal keys: {', '.join(annotations)}"
            yield Problem(path, value, f"is an unknown key; {hint}".rstrip("."))
        elif (section := section_type(annotations[key])) and not (
            value is None and section is not bare(annotations[key])
        ):
            yield from _subtree(path, value, section, config, arguments)
        elif value == MISSING:
            what = WANTED.get(key) or f"it must be {describe_for_missing(annotations[key])}"
            yield Problem(path, value, f"has to be set: {what}")
        else:
            wrong = mistake(annotations[key], value)
            if wrong:
                yield Problem(path, value, wrong)
            elif prefix and key == "name" and not NAME.fullmatch(value):
                yield Problem(
                    path, value, "must be letters, digits, _, -, + and dots between them: folders are called so"
                )


def describe_for_missing(annotation: Any) -> str:
    """The legal values of a key that has no default."""
    return (mistake(annotation, object()) or "").removeprefix("must be ")


def _subtree(
    path: str, value: Any, section: Any, config: dict[str, Any], arguments: TargetArguments
) -> Iterator[Problem]:
    if not isinstance(value, dict):
        yield Problem(path, value, f"must be a group option or a section with keys {', '.join(keys_of(section))}")
        return
    yield from (
        Problem(f"{path}.{key}", MISSING, "is missing from the configuration")
        for key in required(section)
        if key not in value
    )
    annotations = keys_of(section)
    if "_target_" in annotations and isinstance(value.get("_target_"), str):
        try:
            plugins = [name for name in _named(config) if mistake_of_plugin(name) is None]
            # An argument's own annotation is the narrower one.
            annotations = annotations | arguments(path, value["_target_"], plugins)
        except ConfigError as error:
            yield Problem(f"{path}._target_", value["_target_"], str(error))
            return
    yield from _section(f"{path}.", value, annotations, config, arguments)


# What runs did before there was a key, where that is not its default today, or where it has none: optimisers and
# schedules of a user's own could leave keys out.
EARLIER: dict[str, dict[str, Any]] = {
    "fp": {"epochs": 10, "lr": 0.1, "merged_training": False},
    "qat": {"epochs": 10, "lr": 0.1, "steps_within": None},
    "quant": {"int32_bias": False, "summands": "fp"},
    "mode": {"post_bn": False},
    "optim": {"name": "sgd", "weight_decay": 1e-4, "label_smoothing": 0.0},
    "schedule": {"name": "cosine", "warmup_epochs": 0.0},
}
EARLIER_DATA: dict[str, dict[str, Any]] = {
    "repq_cli.data.photos.load": {"low_rounding": "once"},
    "repq_cli.data.sr_folder.load": {"low_rounding": "once"},
}


def with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """A stored configuration with those of the keys it lacks, because they came later, that are not at their default.

    They are what they were to the run.
    """
    found = dict(config)
    data = config.get("data")
    target = str(data.get("_target_")) if isinstance(data, dict) else ""
    for section, earlier in {**EARLIER, "data": EARLIER_DATA.get(target, {})}.items():
        if isinstance(found.get(section), dict):
            found[section] = found[section] | {key: earlier[key] for key in earlier if key not in found[section]}
    return found


def resolved(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with what it leaves to us decided.

    ``mode=auto``, ``rep.identity=auto``, ``qat.steps_within=auto``, ``fp.merged_training=auto``, and hard tanh where
    activations are signs.
    """
    asked = Config.of(config)
    rep, model, quant = asked.rep, asked.model, asked.quant
    name = resolve_mode(asked.mode.name, rep.name, rep.batch_norm, quant.weight_bits)
    decided: dict[str, dict[str, Any]] = {"mode": {"name": name}}
    if asked.fp.merged_training == "auto":
        decided["fp"] = {"merged_training": not rep.batch_norm}
    if "activation" in model.arguments and model.activation is None and quant.signs_of_activations:
        decided["model"] = {"activation": "hardtanh"}
    if rep.arguments.get("identity") == "auto":
        decided["rep"] = {"identity": resolve_identity(asked.mode.name, quant.weight_method, quant.weight_bits)}
    if asked.qat.steps_within == "auto":
        decided["qat"] = {"steps_within": resolve_steps_within(asked.mode.name, quant.weight_method, quant.weight_bits)}
    return config | {section: config[section] | values for section, values in decided.items()}
