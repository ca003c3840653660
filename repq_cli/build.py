"""From a configuration, which is validated here, to objects; the only place that resolves a ``_target_``."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any
from uuid import uuid4

from repq_cli import schema
from repq_cli.errors import ConfigError
from repq_cli.modes.catalogue import has_branches
from repq_cli.modes.options import ModeOptions
from repq_cli.problems import error_of
from repq_cli.quant.options import QuantOptions
from repq_cli.train.options import OptimOptions, RuntimeOptions, ScheduleOptions, StageOptions
from repq_cli.typecheck import annotations_of

ALLOWED = ("repq_cli.", "torch.optim.")

# What build itself passes to each section's target, whatever the configuration says.
PROVIDED = {
    "model": {"make_block", "in_channels", "num_classes"},
    "rep": {"geometry", "activation"},
    "data": {"upscaling"},
}


def resolve(target: str, plugins: list[str]) -> Callable[..., Any]:
    """The function or class that ``target`` names, if it is one of ours, of torch.optim, or of a plugin."""
    allowed = (*ALLOWED, *(f"{plugin}." for plugin in plugins))
    if not target.startswith(allowed):
        raise ConfigError(f"may only name something below {', '.join(allowed)}; add your package to plugins=[...]")
    module_name, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"names nothing that can be imported ({error})") from error
    if not callable(found) or inspect.ismodule(found):
        raise ConfigError("names something that cannot be called")
    return found


def checked(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with ``auto`` resolved. Raises ConfigError with every problem."""
    problems = schema.validate(config, target_arguments)
    if not problems:
        config = schema.resolved(config)
        problems = schema.validate(config, target_arguments)
    if problems:
        raise error_of(problems)
    return config


def target_arguments(section: str, target: str, plugins: list[str]) -> dict[str, Any]:
    """The annotations of those arguments of a section's target that its configuration may set."""
    function = resolve(target, plugins)
    annotations = annotations_of(function)
    names = [name for name in inspect.signature(function).parameters if name not in PROVIDED[section]]
    return {name: annotations.get(name, Any) for name in names}


def _bound(section: str, config: dict[str, Any], known: Any) -> Callable[..., Any]:
    """A section's target with the section's keys as arguments; ConfigError if they are not its own."""
    values = config[section]
    function = resolve(values["_target_"], config["plugins"])
    parameters = inspect.signature(function).parameters
    reserved = {field.name for field in dataclasses.fields(known)} - set(parameters)
    arguments = {key: value for key, value in values.items() if key not in reserved | PROVIDED[section]}
    provided = PROVIDED[section] & set(parameters)
    try:
        inspect.signature(function).bind(**arguments, **dict.fromkeys(provided))
    except TypeError as error:
        raise ConfigError(f"{section}: {error}; compare with the arguments of {values['_target_']}.") from error
    return functools.partial(function, **arguments)


def _call(section: str, config: dict[str, Any], known: Any, **provided: Any) -> Any:
    """Call a section's target with the section's keys; a ValueError of its own becomes a ConfigError.

    Of ``provided`` it gets what it has parameters for.
    """
    function = _bound(section, config, known)
    wanted = inspect.signature(function).parameters
    try:
        return function(**{name: value for name, value in provided.items() if name in wanted})
    except ValueError as error:
        raise ConfigError(str(error)) from error


def network_maker(config: dict[str, Any], info: Any) -> Callable[[], Any]:
    """A function that builds the FP network afresh."""
    from repq_cli.reparam.plain import only_kernels, plain_block

    branches = has_branches(config)
    # A block's ValueError passes through the model, which adds the layer's name.
    block = _bound("rep", config, schema.RepSection)
    ordinary = functools.partial(plain_block, batch_norm=config["rep"]["batch_norm"])
    make_block = only_kernels(config["rep"]["kernels"], block, ordinary) if branches else ordinary

    classes = config["model"].get("num_classes") or info.num_classes
    if classes < info.num_classes:
        raise ConfigError(
            f"model.num_classes={classes} is less than the {info.num_classes} classes of {info.name}: "
            f"use model.num_classes={info.num_classes}, or null."
        )

    def make() -> Any:
        channels = info.shape[0]
        net = _call(
            "model", config, schema.ModelSection, make_block=make_block, in_channels=channels, num_classes=classes
        )
        if branches:
            _require_blocks(net, config["rep"])
        return net

    return make


def _require_blocks(net: Any, rep: dict[str, Any]) -> None:
    """ConfigError where no convolution has become a block, so that nobody measures an ordinary network by mistake."""
    from repq_cli.reparam.block import Block

    sizes = {module.geometry.kernel_size for module in net.modules() if isinstance(module, Block)}
    if not sizes & set(rep["kernels"]):
        raise ConfigError(
            f"rep.kernels={rep['kernels']} makes no block of this network, whose kernels are of size "
            f"{', '.join(map(str, sorted(sizes)))}: name one of them, or use rep=none."
        )


def _upscaling(config: dict[str, Any]) -> Any:
    """What the network does with pictures, which its data must know; None where it classifies."""
    from repq_cli.data.pictures import Upscaling

    model = config["model"]
    return Upscaling(model["scale"], model["colour"]) if config["task"] == "super_resolution" else None


def data(config: dict[str, Any]) -> Any:
    """The dataset."""
    loader = resolve(config["data"]["_target_"], config["plugins"])
    pictures = "upscaling" in inspect.signature(loader).parameters
    if pictures != (config["task"] == "super_resolution"):
        right = "super_resolution" if pictures else "classification"
        raise ConfigError(
            f"task={config['task']} is not that of data={config['data']['name']}: leave it out, or {right}."
        )
    return _call("data", config, schema.DataSection, upscaling=_upscaling(config))


def _beside(config: dict[str, Any], name: str) -> Callable[..., Any] | None:
    """A function that may stand beside the data's ``load`` in its module, and does with less reading."""
    values = config["data"]
    resolve(values["_target_"], config["plugins"])
    function = getattr(importlib.import_module(values["_target_"].rpartition(".")[0]), name, None)
    return functools.partial(function, **values, upscaling=_upscaling(config)) if function else None


def data_inputs(config: dict[str, Any]) -> Any:
    """Shape and classes of the data; read from its files only where they are not known beforehand."""
    describe = _beside(config, "describe")
    return describe() if describe else data(config).info


def data_tests(config: dict[str, Any]) -> Any:
    """The evaluation sets of the data by name, without its training images where that can be."""
    sets = _beside(config, "evaluation_sets")
    try:
        return sets() if sets else data(config).tests
    except ValueError as error:
        raise ConfigError(str(error)) from error


def task(config: dict[str, Any]) -> Any:
    """Loss, metrics, and what is better."""
    from repq_cli.tasks.classification import Classification
    from repq_cli.tasks.super_resolution import SuperResolution

    if config["task"] == "super_resolution":
        return SuperResolution(config["model"]["scale"], config["model"]["colour"], config["psnr_rounding"])
    return Classification(config["optim"].get("label_smoothing", 0.0))


def experiment(config: dict[str, Any], loaded: Any = None) -> Any:
    """Everything a run needs. ``config`` is validated and its mode resolved; ``loaded``: its data, if at hand."""
    import torch

    from repq_cli.modes.compose import refuse_signs_behind_relu
    from repq_cli.train.experiment import Experiment
    from repq_cli.train.fp_key import fp_key

    loaded = data(config) if loaded is None else loaded
    batch_size = config["data"]["batch_size"]
    loaded.train.steps(batch_size)  # says so if a batch is larger than the data
    optim = OptimOptions(**config["optim"])
    make_net = network_maker(config, loaded.info)
    quant = QuantOptions(**config["quant"])
    with torch.device("meta"):  # what cannot be built is said before anything is written
        refuse_signs_behind_relu(make_net(), quant)
    identity = loaded.identity()
    return Experiment(
        config=config,
        data_name=config["data"]["name"],
        model=config["model"]["name"],
        rep=config["rep"]["name"],
        make_net=make_net,
        data=loaded,
        identity=identity,
        batch_size=batch_size,
        task=task(config),
        quant=quant,
        mode=ModeOptions(**config["mode"]),
        fp=StageOptions(**config["fp"]),
        qat=StageOptions(**config["qat"]),
        optim=optim,
        schedule=ScheduleOptions(**config["schedule"]),
        runtime=RuntimeOptions(**config["runtime"]),
        seed=config["seed"],
        verbosity=config["verbosity"],
        # A stored configuration may lack keys that a composed one has; data that is not known is like no other.
        fp_key=fp_key(schema.with_defaults(config), identity.training or uuid4().hex),
    )
