"""The configuration's types, and every problem of a configuration at once. Knows neither torch nor Hydra."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from repq_cli.bounds import Range
from repq_cli.errors import ConfigError
from repq_cli.modes.options import ModeOptions, resolve_mode
from repq_cli.quant.options import METHOD_BITS, QuantOptions
from repq_cli.train.options import OptimOptions, RuntimeOptions, ScheduleOptions, StageOptions
from repq_cli.typecheck import annotations_of, mistake, nearest

MISSING = "???"


@dataclass(frozen=True)
class ModelSection:
    """Keys of ``model`` beside the arguments of its ``_target_``."""

    _target_: str
    name: str
    num_classes: Annotated[int, Range(2)] | None = None


@dataclass(frozen=True)
class RepSection:
    """Keys of ``rep`` beside the arguments of its ``_target_``.

    batch_norm: whether its blocks have any.
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
    task: Literal["classification"] = "classification"
    seed: Annotated[int, Range(0)] = 0
    verbosity: Literal["quiet", "normal", "debug"] = "normal"
    plugins: list[str] = dataclasses.field(default_factory=list)
    input_shape: tuple[Annotated[int, Range(1)], Annotated[int, Range(1)], Annotated[int, Range(1)]] | None = None


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a configuration."""

    key: str
    value: Any
    message: str

    def __str__(self) -> str:
        value = (
            "null" if self.value is None else str(self.value).lower() if isinstance(self.value, bool) else self.value
        )
        return f"{self.key}={value} {self.message}" + ("" if self.message.endswith("?") else ".")


def report(problems: list[Problem]) -> ConfigError:
    """All problems as one error."""
    unique = list(dict.fromkeys(map(str, problems)))
    if len(unique) == 1:
        return ConfigError(unique[0])
    return ConfigError("\n".join([f"{len(unique)} problems in the configuration:", *(f"  {line}" for line in unique)]))


# Arguments of a section's target that the configuration sets: given the target's name, their annotations.
TargetArguments = Callable[[str, str, list[str]], dict[str, Any]]


def validate(config: dict[str, Any], target_arguments: TargetArguments, combinations: bool = True) -> list[Problem]:
    """Every unknown key, wrong type, value out of range and (if asked) illegal combination of a configuration."""
    problems = list(_section("", config, annotations_of(Config), config, target_arguments))
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
        elif dataclasses.is_dataclass(annotations[key]):
            yield from _subtree(path, value, annotations[key], config, arguments)
        elif value == MISSING:
            yield Problem(path, value, f"has to be set: it must be {describe_for_missing(annotations[key])}")
        else:
            wrong = mistake(annotations[key], value)
            if wrong:
                yield Problem(path, value, wrong)


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
            annotations = arguments(path, value["_target_"], plugins) | annotations
        except ConfigError as error:
            yield Problem(f"{path}._target_", value["_target_"], str(error))
            return
    yield from _section(f"{path}.", value, annotations, config, arguments)


def _mode_fits_block(config: dict[str, Any]) -> Iterator[Problem]:
    mode, rep = config["mode"]["name"], config["rep"]
    if mode == "merged" and rep["name"] == "none":
        yield Problem("mode", mode, "has nothing to merge with rep=none; use mode=plain, or a block such as rep=repvgg")
    if mode == "branchwise" and rep["name"] == "none":
        yield Problem(
            "mode", mode, "has no branches to quantize with rep=none; use mode=plain, or a block such as rep=repvgg"
        )
    if mode in ("repq_bn", "repq_bnest") and not rep["batch_norm"]:
        yield Problem("mode", mode, f"needs batch norm, which rep={rep['name']} has none of; use mode=repq")


def _branches_are_quantized(config: dict[str, Any]) -> Iterator[Problem]:
    if config["mode"]["name"] == "branchwise" and config["quant"]["weight_bits"] == 32:
        yield Problem("mode", "branchwise", "has nothing to quantize at quant.weight_bits=32; use 8 or less")


def _penalty_fits_block(config: dict[str, Any]) -> Iterator[Problem]:
    if config["optim"].get("custom_l2") and (config["rep"]["name"] != "repvgg" or config["mode"]["name"] == "plain"):
        yield Problem(
            "optim.custom_l2",
            True,
            "is the penalty of RepVGG's blocks; it needs rep=repvgg and a mode other than plain",
        )


def _stages_have_weights(config: dict[str, Any]) -> Iterator[Problem]:
    if config["fp"]["checkpoint"] is None and config["fp"]["epochs"] == 0:
        yield Problem("fp.epochs", 0, "leaves QAT without FP weights; use 1 or more, or set fp.checkpoint")
    if config["fp"]["checkpoint"] is None and config["fp"].get("format", "auto") != "auto":
        yield Problem("fp.format", config["fp"]["format"], "has no file to describe; set fp.checkpoint as well")
    if config["qat"].get("checkpoint") is not None:
        yield Problem("qat.checkpoint", config["qat"]["checkpoint"], "has no meaning; go on with a run by resume=DIR")


def _methods_have_their_bits(config: dict[str, Any]) -> Iterator[Problem]:
    quant = config["quant"]
    for tensors, methods in METHOD_BITS.items():
        bits, method = quant[f"{tensors}_bits"], quant[f"{tensors}_method"]
        if bits != 32 and bits not in methods[method]:
            legal = ", ".join(map(str, methods[method]))
            fitting = ", ".join(name for name, widths in methods.items() if bits in widths)
            yield Problem(
                f"quant.{tensors}_bits",
                bits,
                f"does not go with quant.{tensors}_method={method}, which is for {legal} bits (or 32 for none); "
                f"{bits} bits: {fitting}",
            )
    if quant["act_bits"] == 1 and quant["first_last"] == "same":
        yield Problem(
            "quant.first_last",
            "same",
            "would leave one bit of the image, whose values are real; use 8, inputs8 (weights the same) or fp",
        )


def _quant_keys_have_effect(config: dict[str, Any]) -> Iterator[Problem]:
    quant = config["quant"]
    signs = _signs_of_activations(quant)
    for key, default in (("pad_value", 0), ("input_scale", False)):
        if quant[key] != default and not signs:
            yield Problem(
                f"quant.{key}", quant[key], "is for activations of -1 and 1; it needs quant.act_method=sign, act_bits=1"
            )
    if quant["stochastic"] and not signs and not _signs_of_weights(quant):
        yield Problem("quant.stochastic", True, "is for signs; it needs weight_method=sign or act_method=sign")
    if quant["latent_range"] != "auto" and not _signs_of_weights(quant):
        yield Problem("quant.latent_range", quant["latent_range"], "is for signs; it needs quant.weight_method=sign")
    if quant["symmetric"] and quant["weight_method"] != "lsq":
        yield Problem("quant.symmetric", True, "is for quant.weight_method=lsq; the other methods are symmetric")


def _signs_of_activations(quant: dict[str, Any]) -> bool:
    return bool(quant["act_method"] == "sign" and quant["act_bits"] == 1)


def _signs_of_weights(quant: dict[str, Any]) -> bool:
    return bool(quant["weight_method"] == "sign" and quant["weight_bits"] == 1)


def _signs_have_two_values(config: dict[str, Any]) -> Iterator[Problem]:
    quant, activation = config["quant"], config["model"].get("activation")
    if _signs_of_activations(quant) and activation in ("relu", "relu6"):
        yield Problem(
            "model.activation",
            activation,
            "leaves no value below zero, and the sign of all others is +1; quant.act_method=sign wants the order "
            "convolution, batch norm, sign: use model.activation=hardtanh or null, or quant.act_method=lsq",
        )


def _branches_have_steps(config: dict[str, Any]) -> Iterator[Problem]:
    if config["mode"]["name"] == "branchwise" and _signs_of_weights(config["quant"]):
        yield Problem(
            "mode",
            "branchwise",
            "merges branches by their scales, which quant.weight_method=sign has none of; use weight_method=bwn or lsq",
        )


# Rules over several sections, each checked where those sections are sound in themselves.
COMBINATIONS: list[tuple[set[str], Callable[[dict[str, Any]], Iterator[Problem]]]] = [
    ({"mode", "rep"}, _mode_fits_block),
    ({"mode", "quant"}, _branches_are_quantized),
    ({"mode", "quant"}, _branches_have_steps),
    ({"quant"}, _methods_have_their_bits),
    ({"quant"}, _quant_keys_have_effect),
    ({"quant", "model"}, _signs_have_two_values),
    ({"mode", "rep", "optim"}, _penalty_fits_block),
    ({"fp", "qat"}, _stages_have_weights),
]


def with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with keys that it lacks, as a file of an earlier version does, at their defaults."""
    config = dict(config)
    for section, annotation in annotations_of(Config).items():
        if dataclasses.is_dataclass(annotation) and isinstance(config.get(section), dict):
            fields = dataclasses.fields(annotation)
            defaults = {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}
            if "_target_" not in annotations_of(annotation):
                config[section] = defaults | config[section]
    return config


def resolved(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with what it leaves to us decided: ``mode=auto``, and hard tanh where activations are signs."""
    config = config | {"mode": config["mode"] | {"name": resolved_mode(config)}}
    model, quant = config["model"], config["quant"]
    if model.get("activation", "") is None and _signs_of_activations(quant):
        config |= {"model": model | {"activation": "hardtanh"}}
    return config


def resolved_mode(config: dict[str, Any]) -> str:
    """What the configuration's mode is once ``auto`` is decided."""
    rep = config["rep"]
    return resolve_mode(config["mode"]["name"], rep["name"], rep["batch_norm"], config["quant"]["weight_bits"])
