"""FP weights from a file: a run's own checkpoint, or a published state dict of another project."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from repq_cli.errors import DataError
from repq_cli.models.official import FORMATS, Layout, convert, recognise
from repq_cli.train import checkpoint
from repq_cli.train.experiment import OWN_ACTIVATION
from repq_cli.train.log import logger
from repq_cli.train.options import WeightFormat

LISTED = 8  # keys of a mismatch that an error names


def load_fp(net: nn.Module, path: Path, layout: WeightFormat, signature: dict[str, str]) -> None:
    """Load FP weights into ``net``; DataError, and the net as it was, says what does not fit."""
    content = checkpoint.load_any(path)
    own = "format" in content and "signature" in content
    if own and layout not in ("auto", "repq"):
        raise DataError(f"The checkpoint {path} is one of repq's own: leave fp.format={layout} out.")
    if own or layout == "repq":
        _load_own(net, path, checkpoint.checked(path, content), signature)
    else:
        _load_published(net, path, _state_dict(path, content), layout)
        activation = signature.get("model.activation", OWN_ACTIVATION)
        if activation != OWN_ACTIVATION:
            logger.warning(
                "%s was trained with its own activation, and this net has %s: what it computes is another function.",
                path,
                activation,
            )


def _load_own(net: nn.Module, path: Path, content: dict[str, Any], signature: dict[str, str]) -> None:
    if content.get("stage") != "fp":
        raise DataError(
            f"The checkpoint {path} holds a {content.get('stage')} net, and QAT starts from an FP net: "
            f"use the same run's checkpoints/fp.pt."
        )
    for key, wanted in signature.items():
        found = {"model.activation": OWN_ACTIVATION, "rep.identity": "false", **content.get("signature", {})}.get(key)
        if found != wanted:
            raise DataError(
                f"The checkpoint {path} has {key} {found} and this run {key} {wanted}: "
                f"use a checkpoint of the same net, or change the configuration to {key} {found}."
            )
    wanted_shapes = {key: list(tensor.shape) for key, tensor in net.state_dict().items()}
    found_shapes = {key: list(tensor.shape) for key, tensor in content["net"].items()}
    for key in [*wanted_shapes, *found_shapes]:
        if wanted_shapes.get(key) != found_shapes.get(key):
            raise DataError(
                f"The checkpoint {path} is of another net: its {key} has shape {found_shapes.get(key)} and this "
                f"run's {wanted_shapes.get(key)}; use the model.* and rep.* keys that it was trained with."
            )
    net.load_state_dict(content["net"])


def _load_published(net: nn.Module, path: Path, state: dict[str, Tensor], layout: WeightFormat) -> None:
    looks_like, known = recognise(state), ", ".join(FORMATS)
    if layout == "auto" and looks_like is None:
        raise DataError(f"The keys of {path} are of none of the known layouts ({known}): {_some(state)}.")
    name = looks_like if layout == "auto" and looks_like else layout
    if looks_like == name:
        hint = "choose that net or another file"
    elif looks_like:
        hint = f"its keys look like fp.format={looks_like} ({FORMATS[looks_like].net})"
    else:
        hint = f"its keys are of none of the known layouts ({known})"
    wanted = FORMATS[name].layout(net)
    if wanted is None:
        raise DataError(
            f"{path} as fp.format={name} is for {FORMATS[name].net}, and this run's net is another: {hint}."
        )
    problems = _differences(net, state, wanted)
    if problems:
        raise DataError(f"{path} does not fit this run's net as fp.format={name}: {problems}; {hint}.")
    _refuse_impossible(
        path, {source.key: state[source.key] for source in wanted.sources.values() if source.key in state}
    )
    net.load_state_dict(convert(net, state, wanted))


def _refuse_impossible(path: Path, state: dict[str, Tensor]) -> None:
    """DataError for a tensor that no net can run with."""
    for key, tensor in state.items():
        counter = key.endswith("num_batches_tracked")
        if not tensor.is_floating_point() and not counter:
            raise DataError(f"The file {path} holds {key} as {tensor.dtype}: floating-point weights are needed.")
        if not torch.isfinite(tensor).all():
            raise DataError(f"The file {path} holds values in {key} that are not finite: use another file.")
        if key.endswith("running_var") and tensor.min() < 0:
            raise DataError(f"The file {path} holds a negative variance in {key}: use another file.")


def _differences(net: nn.Module, state: dict[str, Tensor], wanted: Layout) -> str:
    """Missing, unexpected and misshapen keys in words; empty if there are none."""
    sources = {source.key for source in wanted.sources.values()}
    optional = {key for key in sources if key.endswith("num_batches_tracked")}
    missing = [key for key in dict.fromkeys(source.key for source in wanted.sources.values()) if key not in state]
    parts = [
        ("missing", [key for key in missing if key not in optional]),
        ("unexpected", [key for key in state if key not in sources and not wanted.ignores(key)]),
    ]
    ours = net.state_dict()
    misshapen = [
        f"{source.key} ({_shape(state[source.key].shape)}, not {_shape(source.shape(ours[key]))})"
        for key, source in wanted.sources.items()
        if source.key in state and state[source.key].shape != source.shape(ours[key])
    ]
    parts.append(("of another shape", list(dict.fromkeys(misshapen))))
    return "; ".join(f"{len(keys)} {word}: {_some(keys)}" for word, keys in parts if keys)


def _shape(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "a number"


def _some(keys: Iterable[str]) -> str:
    listed = list(keys)
    return ", ".join(listed[:LISTED]) + (f" and {len(listed) - LISTED} more" if len(listed) > LISTED else "")


def _state_dict(path: Path, content: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a published file: bare, or below ``state_dict`` or ``model``, with or without ``module.``."""
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(content.get(key), dict):
            content = content[key]
    tensors = {str(key).removeprefix("module."): value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise DataError(
            f"The file {path} holds no state dict: fp.checkpoint takes tensors by name, bare or below 'state_dict' or "
            f"'model', or a checkpoint or run folder of repq's."
        )
    for key, value in tensors.items():
        if value.layout != torch.strided or value.is_quantized:
            raise DataError(f"The file {path} holds {key} as a {value.layout} tensor: dense weights are needed.")
    return tensors
