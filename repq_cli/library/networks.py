"""``repq.models.NAME(...)``: the networks of ``configs/model``, without Hydra."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import resources
from typing import Annotated, Any

import yaml
from torch import nn

from repq_cli import build
from repq_cli.bounds import Range
from repq_cli.config import section_of
from repq_cli.data.base import Inputs
from repq_cli.errors import ConfigError
from repq_cli.library.given import typed
from repq_cli.reparam.algebra import Geometry
from repq_cli.reparam.block import Block, MakeBlock
from repq_cli.targets import ModelSection, RepSection
from repq_cli.typecheck import annotations_of, mistake, nearest

NO_KEYS = {"_target_", "name", "num_classes"}  # of a model's file: what the door has arguments for


class UnknownNetworkError(ConfigError, AttributeError):
    """``repq.models`` has no network of that name."""


def named(name: str) -> Callable[..., nn.Module]:
    """The function that makes the network of ``configs/model/NAME.yaml``."""
    if name not in names("model"):
        near = nearest(name, names("model"))
        hint = f"did you mean '{near}'?" if near else f"there are {', '.join(names('model'))}."
        raise UnknownNetworkError(f"repq.models has no network '{name}': {hint}")
    return functools.partial(network, name)


@typed
def network(
    name: str,
    num_classes: Annotated[int, Range(1)] | None = None,
    in_channels: Annotated[int, Range(1)] | None = None,
    rep: str | MakeBlock | None = None,
    **keys: Any,
) -> nn.Module:
    """A freshly initialised network of blocks.

    num_classes  of a classifier, by default 10; a network that enlarges images has none
    in_channels  of the images; by default 3, or 1 for a network that enlarges luma
    rep          how its convolutions train: a name of ``configs/rep``, or a function
                 ``(geometry, activation) -> Block``; by default the model's own
    keys         those of ``configs/model/NAME.yaml``: ``width``, ``blocks``, …

    Raises ConfigError, with the legal names or values, for what cannot be built.
    """
    found = configuration("model", name)
    own_rep, model = found.pop("own_rep"), found["model"]
    function = build.resolve("model", model["_target_"], [])
    _check_keys(name, model, keys, function)
    classifies = "num_classes" in annotations_of(function)
    if num_classes is not None and not classifies:
        raise ConfigError(f"repq.models.{name} enlarges images, and num_classes={num_classes} is for classifiers.")
    num_classes = 10 if num_classes is None else num_classes
    model |= keys
    chosen = own_rep if rep is None else rep
    if in_channels is None:
        in_channels = 1 if model.get("colour") == "luma" else 3
    if isinstance(chosen, str):
        if chosen not in names("rep"):
            raise ConfigError(
                f"rep={chosen} must be one of {', '.join(names('rep'))}, or a function that makes a block."
            )
        section = configuration("rep", chosen) | found.get("rep", {})
        inputs = Inputs("the arguments", (in_channels, 1, 1), num_classes)
        parts = section_of(ModelSection, model), section_of(RepSection, section)
        return build.network_of(*parts, chosen != "none", [], inputs)()
    arguments = {key: value for key, value in model.items() if key not in NO_KEYS}
    if classifies:
        arguments["num_classes"] = num_classes
    try:
        return function(make_block=_makes_blocks(chosen), in_channels=in_channels, **arguments)
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error


def _makes_blocks(make: MakeBlock) -> MakeBlock:
    """A function of the caller's. TypeError, with the layer, where it gives no module."""

    @functools.wraps(make)
    def made(geometry: Geometry, activation: nn.Module | None) -> Block:
        block = make(geometry, activation)
        if not isinstance(block, nn.Module):
            raise TypeError(f"rep={make.__name__} gives {type(block).__name__}: it has to make a repq block.")
        return block

    return made


def _check_keys(name: str, model: dict[str, Any], keys: dict[str, Any], function: Callable[..., nn.Module]) -> None:
    legal = annotations_of(function)
    for key, value in keys.items():
        if key in NO_KEYS or key not in model:
            near = nearest(key, set(model) - NO_KEYS)
            hint = f"did you mean '{near}'?" if near else f"it has {', '.join(sorted(set(model) - NO_KEYS))}."
            raise ConfigError(f"repq.models.{name} has no key '{key}': {hint}")
        wrong = mistake(legal[key], value)
        if wrong:
            raise ConfigError(f"repq.models.{name}: {key}={value} {wrong}.".replace("?.", "?"))


@functools.cache
def names(group: str) -> list[str]:
    """The options of a group of ``configs/``."""
    folder = resources.files("repq_cli.configs") / group
    return sorted(path.name.removesuffix(".yaml") for path in folder.iterdir() if path.name.endswith(".yaml"))


def configuration(group: str, name: str) -> dict[str, Any]:
    """The values of a group's option over those of the options that it starts from, as Hydra composes them.

    ``own_rep``: of a model, the block that it brings.
    """
    text = (resources.files("repq_cli.configs") / group / f"{name}.yaml").read_text()
    values: dict[str, Any] = yaml.safe_load(text)
    found: dict[str, Any] = {"own_rep": "none"} if group == "model" else {}
    for entry in values.pop("defaults", []):
        if isinstance(entry, str) and entry != "_self_":
            found = configuration(group, entry)
        elif isinstance(entry, dict) and "override /rep" in entry:
            found["own_rep"] = entry["override /rep"]
    for key, value in values.items():
        found[key] = {**found.get(key, {}), **value} if isinstance(value, dict) else value
    return found
