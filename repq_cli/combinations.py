"""Rules over several sections of a configuration: what does not go together, with the reason and the way out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from repq_cli.modes.catalogue import has_branches, mode_named
from repq_cli.modes.mode import Mode
from repq_cli.problems import Problem
from repq_cli.quant.options import METHOD_BITS, signs_of_activations, signs_of_weights


def _mode_fits_block(config: dict[str, Any]) -> Iterator[Problem]:
    mode = mode_named(config["mode"]["name"])
    yield from _misfit(mode, mode.misfit_of_block(config["rep"]))


def _mode_fits_quantizer(config: dict[str, Any]) -> Iterator[Problem]:
    mode = mode_named(config["mode"]["name"])
    yield from _misfit(mode, mode.misfit_of_quantizer(config["quant"]))


def _misfit(mode: Mode, said: str | None) -> Iterator[Problem]:
    if said is not None:
        yield Problem("mode", mode.name, said)


def _penalty_fits_block(config: dict[str, Any]) -> Iterator[Problem]:
    rep = config["rep"]
    fits = rep["name"] == "repvgg" and rep["batch_norm"] and has_branches(config)
    if config["optim"].get("custom_l2") and not fits:
        yield Problem(
            "optim.custom_l2",
            True,
            "is the penalty of RepVGG's blocks; it needs rep=repvgg with batch norm and a mode other than plain",
        )


def _merging_fits_block(config: dict[str, Any]) -> Iterator[Problem]:
    if config["fp"].get("merged_training") is True and config["rep"]["batch_norm"]:
        yield Problem(
            "fp.merged_training",
            True,
            f"needs blocks without batch norm, which depends on each branch's outputs; rep={config['rep']['name']} has "
            f"it: use auto or false",
        )


def _task_fits(config: dict[str, Any]) -> Iterator[Problem]:
    enlarges = "scale" in config["model"]
    if config["task"] == "super_resolution" and not enlarges:
        yield Problem(
            "model",
            config["model"]["name"],
            f"classifies, and data={config['data']['name']} is for super-resolution: use model=ecbsr, or other data",
        )
    if config["task"] == "classification":
        if enlarges:
            yield Problem(
                "model",
                config["model"]["name"],
                f"enlarges pictures, and data={config['data']['name']} is for classification: use data=photos or "
                f"data=sr_folder, or another model",
            )
        if config["quant"]["output"] != "float":
            yield Problem("quant.output", config["quant"]["output"], "is for the pixels of super-resolution")
    elif config["quant"]["output"] == "int8" and config["quant"]["act_bits"] == 32:
        yield Problem("quant.output", "int8", "does not go with quant.act_bits=32, which quantizes no activation")


def _stages_have_weights(config: dict[str, Any]) -> Iterator[Problem]:
    if config["fp"]["checkpoint"] is None and config["fp"]["epochs"] == 0:
        yield Problem("fp.epochs", 0, "leaves QAT without FP weights; use 1 or more, or set fp.checkpoint")
    of_a_file = {"format": "auto", "weights": "auto", "head": "same", "input": "same"}
    for key in of_a_file:
        if config["fp"]["checkpoint"] is None and config["fp"].get(key, of_a_file[key]) != of_a_file[key]:
            yield Problem(f"fp.{key}", config["fp"][key], "has no file to describe; set fp.checkpoint as well")
    hints = {"checkpoint": "; go on with a run by resume=DIR", "merged_training": ", where the mode decides"}
    of_fp: dict[str, Any] = {"checkpoint": None, "merged_training": "auto", "reuse": True, **of_a_file}
    for key, default in of_fp.items():
        if config["qat"].get(key, default) != default:
            hint = hints.get(key, " for QAT")
            yield Problem(f"qat.{key}", config["qat"][key], f"has no meaning{hint}")


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
    signs = signs_of_activations(quant)
    for key, default in (("pad_value", 0), ("input_scale", False)):
        if quant[key] != default and not signs:
            yield Problem(
                f"quant.{key}", quant[key], "is for activations of -1 and 1; it needs quant.act_method=sign, act_bits=1"
            )
    if quant["stochastic"] and not signs and not signs_of_weights(quant):
        yield Problem("quant.stochastic", True, "is for signs; it needs weight_method=sign or act_method=sign")
    if quant["latent_range"] != "auto" and not signs_of_weights(quant):
        yield Problem("quant.latent_range", quant["latent_range"], "is for signs; it needs quant.weight_method=sign")
    if quant["symmetric"] and quant["weight_method"] != "lsq":
        yield Problem("quant.symmetric", True, "is for quant.weight_method=lsq; the other methods are symmetric")


def _signs_have_two_values(config: dict[str, Any]) -> Iterator[Problem]:
    quant, activation = config["quant"], config["model"].get("activation")
    if signs_of_activations(quant) and activation in ("relu", "relu6"):
        yield Problem(
            "model.activation",
            activation,
            "leaves no value below zero, and the sign of all others is +1; quant.act_method=sign wants the order "
            "convolution, batch norm, sign: use model.activation=hardtanh or null, or quant.act_method=lsq",
        )


# Rules over several sections, each checked where those sections are sound in themselves.
COMBINATIONS: list[tuple[set[str], Callable[[dict[str, Any]], Iterator[Problem]]]] = [
    ({"mode", "rep"}, _mode_fits_block),
    ({"mode", "quant"}, _mode_fits_quantizer),
    ({"quant"}, _methods_have_their_bits),
    ({"quant"}, _quant_keys_have_effect),
    ({"quant", "model"}, _signs_have_two_values),
    ({"mode", "rep", "optim"}, _penalty_fits_block),
    ({"fp", "rep"}, _merging_fits_block),
    ({"task", "model", "data", "quant"}, _task_fits),
    ({"fp", "qat"}, _stages_have_weights),
]
