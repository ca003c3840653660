"""FP weights from a file: a run's own checkpoint, or a state dict of whoever saved one."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import nn

from repq_cli.errors import DataError
from repq_cli.pretrained.choose import Choice, choose, fits_of, looks_like
from repq_cli.pretrained.fit import Fit, some
from repq_cli.pretrained.formats import FORMATS, merged_keys
from repq_cli.pretrained.layout import all_plain, normed
from repq_cli.pretrained.read import SAVE, read
from repq_cli.pretrained.sets import WeightSet, weight_sets
from repq_cli.train import checkpoint
from repq_cli.train.experiment import OWN_ACTIVATION
from repq_cli.train.log import logger
from repq_cli.train.options import WeightOptions

AKIN = 0.1  # of a file's keys and a net's: from here on their differences are worth a list
OF_OPTIMISERS = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "step"}


def load_own(net: nn.Module, path: Path, signature: dict[str, str]) -> None:
    """Load the FP weights of a run; DataError, and the net as it was, says what does not fit."""
    load_fp(net, path, WeightOptions(format="repq"), signature)


def load_fp(net: nn.Module, path: Path, how: WeightOptions, signature: dict[str, str]) -> Choice:
    """Load FP weights into ``net`` and say what was taken; DataError, and the net as it was, says what does not fit."""
    choice = fp_choice(net, path, how, signature)
    net.load_state_dict(choice.fit.converted(net))
    if choice.fit.added_up:
        logger.info(
            "Kernels for colours are added up (%s): as if a grey image were three equal colours, normalised like this "
            "run's images, and not by the mean and deviation of each colour that the weights were trained with.",
            some(choice.fit.added_up),
        )
    elif how.input == "sum":
        logger.info("fp.input=sum adds nothing up: the first layer of %s reads as many channels as this run's.", path)
    activation = signature.get("model.activation", OWN_ACTIVATION)
    if choice.fit.name != "repq" and activation != OWN_ACTIVATION:
        logger.warning(
            "%s was trained with its own activation, and this net has %s: what it computes is another function.",
            path,
            activation,
        )
    return choice


def fp_choice(net: nn.Module, path: Path, how: WeightOptions, signature: dict[str, str]) -> Choice:
    """What of a file ``net``, which may be one without data, takes. Raises DataError where it takes nothing."""
    content = read(path)
    if isinstance(content, dict) and {"format", "signature"} <= content.keys():
        if how.format not in ("auto", "repq"):
            raise DataError(f"The checkpoint {path} is one of repq's own: leave fp.format={how.format} out.")
        _refuse_other_run(path, checkpoint.checked(path, content), how, signature)
        content, names = content["net"], ["repq"]
    else:
        names = list(FORMATS) if how.format == "auto" else [how.format]
    sets = weight_sets(content)
    _refuse_no_weights(path, sets)
    fits = fits_of(net, sets, names, how.head == "new")
    choice = choose(fits, sets, how.weights, path)
    if choice is None:
        raise DataError(_why_none(path, net, sets, fits, how))
    fit = choice.fit
    if how.input == "sum":
        fit = fit.summed(fit.other_channels(net.edges(), 3, 1))  # type: ignore[operator]
    if how.head == "new" and not any(map(fit.is_of_head, fit.ours)):
        raise DataError("fp.head=new is for nets with a classifier, which this one has not: leave it out.")
    if not fit.fits:
        raise DataError(f"{path} does not fit this run's net as fp.format={fit.name}: {_what_differs(net, fit, sets)}.")
    fit.refuse_impossible(path)
    return Choice(fit, choice.left)


def _refuse_other_run(path: Path, content: dict[str, Any], how: WeightOptions, signature: dict[str, str]) -> None:
    """DataError for a checkpoint of ours that is no FP net, or one of another net than the run's."""
    if content.get("stage") != "fp":
        raise DataError(
            f"The checkpoint {path} holds a {content.get('stage')} net, and QAT starts from an FP net: "
            f"use the same run's checkpoints/fp.pt."
        )
    known = {"model.activation": OWN_ACTIVATION, "rep.identity": "false", **content.get("signature", {})}
    for key, wanted in signature.items():
        found = known.get(key)
        if found == wanted or _is_adapted(key, str(found), wanted, how):
            continue
        other = {"classes": ", or keep its body alone by fp.head=new", "input": _other_input(str(found), wanted)}
        raise DataError(
            f"The checkpoint {path} has {key} {found} and this run {key} {wanted}: use a checkpoint of the same net, "
            f"or change the configuration to {key} {found}{other.get(key, '')}."
        )


def _is_adapted(key: str, found: str, wanted: str, how: WeightOptions) -> bool:
    """Whether the run asked to take weights for another input or other classes."""
    if key == "classes":
        return how.head == "new"
    if key != "input":
        return False
    found_channels, _, found_size = found.partition("x")
    channels, _, size = wanted.partition("x")
    same_channels = found_channels == channels or (how.input == "sum" and (found_channels, channels) == ("3", "1"))
    return same_channels and (found_size == size or how.head == "new")  # a new head is for new images


def _other_input(found: str, wanted: str) -> str:
    colours_for_grey = (found.partition("x")[0], wanted.partition("x")[0]) == ("3", "1")
    return ", or sum its first kernels over the colours by fp.input=sum" if colours_for_grey else ""


def _refuse_no_weights(path: Path, sets: list[WeightSet]) -> None:
    if not sets:
        raise DataError(
            f"The file {path} holds no state dict: fp.checkpoint takes tensors by name, bare or at any depth of a "
            f"dict, or a checkpoint or run folder of repq's."
        )
    last = {key.rpartition(".")[2] for found in sets for key in found.tensors}
    if last <= OF_OPTIMISERS:
        raise DataError(f"The file {path} holds the state of an optimiser and no weights: {SAVE}.")


def _why_none(path: Path, net: nn.Module, sets: list[WeightSet], fits: list[Fit], how: WeightOptions) -> str:
    """Why a file of which no layout of this net explains most is not taken."""
    name, known = looks_like(sets), ", ".join(FORMATS)
    keys = next(found for found in sets if not found.path).tensors
    merged = _merged_before(net, keys)
    if merged:
        return f"{path} {merged}."
    if name is None and how.format == "auto":
        return f"The keys of {path} are of none of the known layouts ({known}): {some(keys)}."
    asked = name if how.format == "auto" and name is not None else how.format
    akin = AKIN if how.format == "auto" else 0
    nearest = next((fit for fit in fits if fit.name == asked and fit.score >= akin), None)
    if nearest is not None and not (nearest.layout.merged and name == asked and not merged_keys(keys)):
        return f"{path} does not fit this run's net as fp.format={asked}: {_what_differs(net, nearest, sets)}."
    hint = "choose that net or another file"
    if name is None:
        hint = f"its keys are of none of the known layouts ({known})"
    elif name != asked:
        hint = f"its keys look like fp.format={name} ({FORMATS[name].net})"
    elif all_plain(net) and not normed(net) and any(key.endswith("running_var") for key in keys):
        hint = "the file has batch norm, which rep.batch_norm=false leaves out"
    return f"{path} as fp.format={asked} is for {FORMATS[asked].net}, and this run's net is another: {hint}."


def _merged_before(net: nn.Module, keys: Collection[str]) -> str:
    merged = merged_keys(keys)
    if not merged or all_plain(net):
        return ""
    return (
        f"holds convolutions that were merged already ({merged[0]}), whose branches nobody can recover: it is a plain "
        f"net now, for rep=none; use that, or the file from before merging"
    )


def _what_differs(net: nn.Module, fit: Fit, sets: list[WeightSet]) -> str:
    """The differences, and the nearest help."""
    return f"{fit.differences()}; {_help(net, fit, looks_like(sets))}"


def _help(net: nn.Module, fit: Fit, name: str | None) -> str:
    theirs, sources = fit.weights.tensors, fit.layout.sources
    wrong = {*fit.missing, *(source.key for source in fit.misshapen.values())}
    head = wrong & set(fit.head())
    first = net.edges()  # type: ignore[operator]
    colours, grey = fit.other_channels(first, 3, 1), fit.other_channels(first, 1, 3)
    if wrong and wrong == head | {sources[key].key for key in [*colours, *grey]}:
        hints = []
        if head:
            classes = {len(theirs[key]) for key in head if key in theirs}
            has = f"has {classes.pop()} classes" if classes else "has no classifier of this name"
            hints.append(f"it {has}; fp.head=new keeps the body and makes a fresh classifier")
        if colours:
            hints.append("its first layer reads three colours, which fp.input=sum adds up for this run's grey images")
        if grey:
            hints.append("its first layer reads grey images; data.grey=true makes those of image_folder grey")
        return "; ".join(hints)
    if name is None:
        return f"its keys are of none of the known layouts ({', '.join(FORMATS)})"
    if name != fit.name:
        return f"its keys look like fp.format={name} ({FORMATS[name].net})"
    return "use the model.* and rep.* keys that it was trained with, or another file"
