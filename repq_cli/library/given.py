"""What the door is given, looked at before anything is computed: one sentence for each mistake."""

from __future__ import annotations

import functools
import inspect
import json
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import UnionType
from typing import Any, ParamSpec, TypeVar, Union, get_args, get_origin

import torch
from torch import Tensor, nn

from repq_cli.errors import ConfigError, RepqError
from repq_cli.quant.options import QuantOptions
from repq_cli.reparam.block import Block
from repq_cli.text import shortened
from repq_cli.typecheck import annotations_of, describe, legal

P = ParamSpec("P")
R = TypeVar("R")
Batches = Iterable[Tensor | Sequence[Any]]
CHECKED_ELSEWHERE = ("weight_bits", "act_bits")  # with the legal widths
WORDS: dict[Any, str] = {
    nn.Module: "a torch.nn.Module",
    Tensor: "a tensor",
    QuantOptions: "a repq.QuantOptions",
    Path: "a path",
    Batches: "batches, in a list or as a generator gives them",
    Sequence[str]: "a list of names",
    dict[str, Any]: "a dict whose keys are text",
    type(None): "None",
}


def typed(function: Callable[P, R]) -> Callable[P, R]:
    """``function``, which refuses arguments of other types than it is annotated with: ConfigError by their names."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*arguments: P.args, **keys: P.kwargs) -> R:
        annotations = annotations_of(function)
        for name, value in signature.bind(*arguments, **keys).arguments.items():
            if name in annotations and name not in CHECKED_ELSEWHERE and not _fits(annotations[name], value):
                kind = type(value).__name__
                shown = f"{kind} {shortened(value, 40)}" if isinstance(value, str | int | float) else kind
                wanted = _words(annotations[name])
                raise ConfigError(f"repq.{function.__qualname__} was given {name}={shown}, which must be {wanted}.")
        return function(*arguments, **keys)

    return checked


def _fits(annotation: Any, value: Any) -> bool:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return any(_fits(option, value) for option in arguments)
    if origin in (typing.get_origin(Batches), Sequence):
        several = isinstance(value, origin) and not isinstance(value, str | bytes | Tensor)
        return several and (origin is not Sequence or all(isinstance(item, arguments[0]) for item in value))
    return callable(value) if origin is Callable else legal(annotation, value)


def _words(annotation: Any) -> str:
    if annotation in WORDS:
        return WORDS[annotation]
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(dict.fromkeys(_words(option) for option in get_args(annotation)))
    if isinstance(annotation, type) and annotation.__module__.startswith("repq_cli"):
        return f"a {annotation.__name__}, as repq.freeze and repq.load give it"
    return "a function" if get_origin(annotation) is Callable else describe(annotation)


@contextmanager
def answering(what: str, shape: Sequence[int]) -> Iterator[None]:
    """While a network runs on a batch: ConfigError with torch's reason where it cannot take one of this shape."""
    try:
        yield
    except RepqError:
        raise
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ConfigError(
            f"{what} cannot take a batch of shape {list(shape)} ({reason}): give it its inputs."
        ) from error


@torch.no_grad()
def require_fit(net: nn.Module, example: Tensor) -> None:
    """ConfigError for an example that the network cannot take, or of another device or type; it runs once on it."""
    like = next(net.parameters(), None)
    if like is None:
        raise ConfigError(f"{type(net).__name__} has no parameters: there is nothing to be quantized in it.")
    if (example.device, example.dtype) != (like.device, like.dtype):
        raise ConfigError(
            f"The example is {example.dtype} on {example.device} and the network {like.dtype} on {like.device}: "
            f"bring both together with .to(…)."
        )
    if like.dtype not in (torch.float32, torch.float64):
        raise ConfigError(
            f"The network is {like.dtype}, which quantizers' steps are too fine for: bring it to float32 with .float() "
            f"and train inside torch.autocast, which computes in 16 bits where that is safe."
        )
    convolves = any(isinstance(module, Block | nn.Conv2d) for module in net.modules())
    if example.dim() < 2 or example.numel() == 0 or (convolves and example.dim() != 4):
        raise ConfigError(f"The example has the shape {list(example.shape)}: a batch of inputs has [B, C, H, W].")
    _require_finite("The example", example)
    training = {module: module.training for module in net.modules()}
    try:
        with answering(type(net).__name__, example.shape):
            net.eval()(example)
    finally:
        for module, was in training.items():
            module.training = was


def inputs_of(batch: Tensor | Sequence[Any], channels: int, dtype: torch.dtype) -> Tensor:
    """The inputs of a batch, which may be a tuple that starts with them. ConfigError for what is none of these."""
    first = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if not isinstance(first, Tensor):
        raise ConfigError(f"A batch is {type(first).__name__}: batches gives tensors, or tuples that start with one.")
    if first.dim() < 2 or first.shape[1] != channels or len(first) == 0:
        raise ConfigError(f"A batch has the shape {list(first.shape)}, and the network reads [B, {channels}, …].")
    if first.dtype != dtype:
        raise ConfigError(f"A batch is {first.dtype} and the network {dtype}: bring it there with .to(…).")
    _require_finite("A batch", first)
    return first


def _require_finite(what: str, inputs: Tensor) -> None:
    if not (inputs.is_meta or inputs.isfinite().all()):
        raise ConfigError(f"{what} holds NaN or infinity: mend the data, or what is done to them before.")


def require_json(description: dict[str, Any]) -> None:
    """ConfigError for a description that no file of JSON can hold."""
    try:
        json.dumps(description, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"The description is no JSON ({error}): use finite numbers, text and lists.") from error
