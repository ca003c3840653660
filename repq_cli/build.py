"""From a configuration, which is validated here, to objects; the only place that resolves a ``_target_``."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any
from uuid import uuid4

from repq_cli import schema
from repq_cli.bounds import Range
from repq_cli.config import Config
from repq_cli.errors import ConfigError
from repq_cli.modes.catalogue import mode_named
from repq_cli.named import function_of
from repq_cli.problems import Problem, error_of
from repq_cli.runs.folder import RunFolder
from repq_cli.targets import ModelSection, RepSection, Target, plugin_of, registered, unnamed_plugins
from repq_cli.typecheck import annotations_of, nearest

if TYPE_CHECKING:
    from torch import nn

    from repq_cli.data.base import Data, Evaluation, Info, Inputs
    from repq_cli.data.image_files import Reader
    from repq_cli.data.pictures import Upscaling
    from repq_cli.reparam.block import MakeBlock
    from repq_cli.train.engine import Task
    from repq_cli.train.experiment import Experiment

# What build itself passes to each section's target, whatever the configuration says.
PROVIDED = {
    "model": {"make_block", "in_channels", "num_classes", "resolve"},
    "rep": {"geometry", "activation"},
    "data": {"upscaling"},
}
OWN_REGIONS = "own"  # the rep of a foreign network's blocks as they are
# What the configuration may set of that all the same.
SETTABLE = {"model": {"num_classes": Annotated[int, Range(2, 10**7)] | None}}


def resolve(section: str, target: str, plugins: Sequence[str]) -> Callable[..., Any]:
    """The function or class that a section's ``target`` names: one of its registry, or one that a plugin defines.

    Nothing is imported but the module of a registered function, or what lies in a package that was named.
    """
    ours = registered(section)
    plugin = None if target in ours else plugin_of(target, plugins)
    if target not in ours and plugin is None:
        if not ours:
            raise ConfigError(f"is of no package in plugins=[…]: add plugins=[{target.partition('.')[0]}]")
        hint = f"did you mean '{near}'?" if (near := nearest(target, ours)) else f"one of {', '.join(sorted(ours))}"
        raise ConfigError(f"is none of repq's functions for {section} and of no package in plugins=[…]; {hint}")
    return function_of(target, plugin)


def checked(tree: dict[str, Any]) -> Config:
    """The configuration with ``auto`` resolved. Raises ConfigError with every problem.

    The plugins that it names are trusted: of a stored one, ``stored`` asks whether they may be.
    """
    problems = schema.validate(tree, target_arguments)
    if not problems:
        tree = schema.resolved(tree)
        problems = schema.validate(tree, target_arguments)
    if problems:
        raise error_of(problems)
    return Config.of(tree)


def stored(folder: RunFolder, plugins: Sequence[str], changes: Mapping[str, Any] | None = None) -> Config:
    """The configuration of a run, of an earlier version too, with ``changes`` by section or key.

    plugins: those that the running command line names; the run may want no others.

    Raises DataError, or ConfigError with every problem.
    """
    tree = folder.read_config()
    if said := unnamed_plugins(tree.get("plugins"), plugins):
        raise ConfigError(f"{folder}: {Problem('plugins', tree['plugins'], said)}")
    for key, value in (changes or {}).items():
        own = tree.get(key)
        tree[key] = own | value if isinstance(own, dict) and isinstance(value, dict) else value
    return checked(schema.with_defaults(tree))


def target_arguments(section: str, target: str, plugins: list[str]) -> dict[str, Any]:
    """The annotations of those arguments of a section's target that its configuration may set."""
    function = resolve(section, target, plugins)
    settable = SETTABLE.get(section, {})
    annotations = annotations_of(function) | settable
    kept = PROVIDED[section] - settable.keys()
    names = [name for name in inspect.signature(function).parameters if name not in kept]
    return {name: annotations.get(name, Any) for name in names}


def _bound(section: str, values: Target, plugins: list[str]) -> Callable[..., Any]:
    """A section's target with the section's keys as arguments; ConfigError if they are not its own."""
    function = resolve(section, values.target, plugins)
    parameters = inspect.signature(function).parameters
    own = {key: value for key, value in values.own_keys().items() if key in parameters}
    given = {key: value for key, value in (own | values.arguments).items() if key not in PROVIDED[section]}
    provided = PROVIDED[section] & set(parameters)
    try:
        inspect.signature(function).bind(**given, **dict.fromkeys(provided))
    except TypeError as error:
        raise ConfigError(f"{section}: {error}; compare with the arguments of {values.target}.") from error
    return functools.partial(function, **given)


def _call(section: str, values: Target, plugins: list[str], **provided: Any) -> Any:
    """Call a section's target with the section's keys; a ValueError of its own becomes a ConfigError.

    Of ``provided`` it gets what it has parameters for.
    """
    function = _bound(section, values, plugins)
    wanted = inspect.signature(function).parameters
    try:
        return function(**{name: value for name, value in provided.items() if name in wanted})
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except (OverflowError, RuntimeError) as error:  # of sizes that no tensor has
        if values.is_ours and "memory" not in str(error):
            said = str(error).partition("\n")[0]
            raise ConfigError(
                f"{section}={values.name} cannot be built with these keys ({said}): choose smaller ones."
            ) from error
        raise


def network_maker(config: Config, info: Inputs | Info) -> Callable[[], nn.Module]:
    """A function that builds the FP network afresh."""
    branches = mode_named(config.mode.name).has_branches(config.rep.name)
    return network_of(config.model, config.rep, branches, config.plugins, info)


def block_maker(rep: RepSection, branches: bool, plugins: list[str]) -> MakeBlock:
    """What a network makes its convolutions by: blocks where ``rep`` has some and ``branches`` are wanted."""
    from repq_cli.reparam.plain import only_kernels, plain_block

    # A block's ValueError passes through the model, which adds the layer's name.
    block = _bound("rep", rep, plugins)
    ordinary = functools.partial(plain_block, batch_norm=rep.batch_norm)
    return only_kernels(rep.kernels, block, ordinary) if branches else ordinary


def network_of(
    model: ModelSection, rep: RepSection, branches: bool, plugins: list[str], info: Inputs | Info
) -> Callable[[], nn.Module]:
    """A function that builds the network afresh, of blocks with ``branches`` or of ordinary convolutions."""
    from repq_cli.graphs.rebuild import of_blocks
    from repq_cli.memory import holding

    make_block = block_maker(rep, branches, plugins)
    classes = model.num_classes or info.num_classes
    if classes < info.num_classes:
        raise ConfigError(
            f"model.num_classes={classes} is less than the {info.num_classes} classes of {info.name}: "
            f"use model.num_classes={info.num_classes}, or null."
        )

    def make() -> nn.Module:
        channels = info.shape[0]
        resolver = functools.partial(_plugin_function, "model.target", plugins)
        given = {"make_block": make_block, "in_channels": channels, "num_classes": classes, "resolve": resolver}
        with holding(model.name):
            net = _call("model", model, plugins, **given)
        if not hasattr(net, "edges"):
            blocks = None if rep.name == OWN_REGIONS and branches else (make_block, rep.kernels if branches else [])
            keys = model.arguments
            net = of_blocks(net, info.shape, keys.get("drop_strides", 0), blocks, keys.get("keep_float") or ())
        elif rep.name == OWN_REGIONS:
            raise ConfigError(
                f"rep={OWN_REGIONS} is for foreign networks, and {model.name} is repq's: choose another rep."
            )
        if branches and rep.name != OWN_REGIONS:
            _require_blocks(net, rep.kernels)
        return net

    return make


def _plugin_function(key: str, plugins: list[str], target: str) -> Callable[..., Any]:
    """What ``key`` names, which has to be a plugin's."""
    try:
        return resolve(key, target, plugins)
    except ConfigError as error:
        raise ConfigError(f"{key}={target} {error}.") from error


def _require_blocks(net: nn.Module, kernels: list[int]) -> None:
    """ConfigError where no convolution has become a block, so that nobody measures an ordinary network by mistake."""
    from repq_cli.reparam.block import Block

    sizes = {module.geometry.sizes[0] for module in net.modules() if isinstance(module, Block)}
    if not sizes & set(kernels):
        raise ConfigError(
            f"rep.kernels={kernels} makes no block of this network, whose kernels are of size "
            f"{', '.join(map(str, sorted(sizes)))}: name one of them, or use rep=none."
        )


def _upscaling(config: Config) -> Upscaling | None:
    """What the network does with pictures, which its data must know; None where it classifies."""
    from repq_cli.data.pictures import Upscaling

    return Upscaling(*config.model.enlarging) if config.task == "super_resolution" else None


def data(config: Config) -> Data:
    """The dataset; of a trial as much as it needs."""
    from repq_cli.data.trial import PER_FOLDER, as_needed, trial_of
    from repq_cli.images.few import at_most

    loader = resolve("data", config.data.target, config.plugins)
    pictures = "upscaling" in inspect.signature(loader).parameters
    if pictures != (config.task == "super_resolution"):
        right = "super_resolution" if pictures else "classification"
        raise ConfigError(f"task={config.task} is not that of data={config.data.name}: leave it out, or {right}.")
    if not config.fast_dev_run:
        return _call("data", config.data, config.plugins, upscaling=_upscaling(config))
    with at_most(PER_FOLDER):
        section = replace(config.data, arguments=as_needed(config.data.arguments))
        return trial_of(_call("data", section, config.plugins, upscaling=_upscaling(config)), config.data.batch_size)


def _beside(config: Config, name: str) -> Callable[..., Any] | None:
    """A function that may stand beside the data's ``load`` in its module, and does with less reading.

    Of the data's keys it gets what it has parameters for.
    """
    loader = resolve("data", config.data.target, config.plugins)
    function = getattr(inspect.getmodule(loader), name, None)
    if not inspect.isfunction(function):
        return None
    given = config.data.keys() | {"upscaling": _upscaling(config)}
    wanted = inspect.signature(function).parameters
    return functools.partial(function, **{name: value for name, value in given.items() if name in wanted})


def data_inputs(config: Config) -> Inputs | Info:
    """Shape and classes of the data; read from its files only where they are not known beforehand."""
    describe = _beside(config, "describe")
    return describe() if describe else data(config).info


def data_tests(config: Config) -> Mapping[str, Evaluation]:
    """The evaluation sets of the data by name, without its training images where that can be."""
    sets = _beside(config, "evaluation_sets")
    try:
        return sets() if sets else data(config).tests
    except ValueError as error:
        raise ConfigError(str(error)) from error


def image_reader(config: Config, inputs: Inputs, max_pixels: int) -> Reader:
    """How an image file of any size becomes a network's input: as the data says, else scaled and cut to its size."""
    from repq_cli.data.image_folder import Decoder

    own = _beside(config, "image_reader")
    channels, *size = inputs.shape
    return own(max_pixels=max_pixels) if own else Decoder((size[0], size[1]), channels == 1, max_pixels, resize=True)


def task(config: Config) -> Task:
    """Loss, metrics, and what is better."""
    from repq_cli.tasks.classification import Classification
    from repq_cli.tasks.features import Features
    from repq_cli.tasks.super_resolution import SuperResolution

    if config.task == "super_resolution":
        return SuperResolution(*config.model.enlarging, config.psnr_rounding)
    if config.task == "features":
        names = {key: name for key in ("loss", "score") if (name := getattr(config, key)) is not None}
        return Features(**{key: _plugin_function(key, config.plugins, name) for key, name in names.items()})
    return Classification(config.optim.label_smoothing)


def experiment(config: Config, loaded: Data | None = None) -> Experiment:
    """Everything a run needs. ``config`` is validated and its mode resolved; ``loaded``: its data, if at hand."""
    import torch

    from repq_cli.data.trial import trial_batch
    from repq_cli.modes.compose import refuse_signs_behind_relu
    from repq_cli.train.experiment import Experiment
    from repq_cli.train.fp_key import fp_key

    loaded = data(config) if loaded is None else loaded
    batch_size = trial_batch(loaded, config.data.batch_size) if config.fast_dev_run else config.data.batch_size
    loaded.train.steps(batch_size)  # says so if a batch is larger than the data
    make_net = network_maker(config, loaded.info)
    with torch.device("meta"):  # what cannot be built is said before anything is written
        refuse_signs_behind_relu(make_net(), config.quant)
    identity = loaded.identity()
    loaded.fill()
    return Experiment(
        config=config,
        data_name=config.data.name,
        model=config.model.name,
        rep=config.rep.name,
        make_net=make_net,
        data=loaded,
        identity=identity,
        batch_size=batch_size,
        task=task(config),
        quant=config.quant,
        mode=config.mode,
        fp=config.fp.tried() if config.fast_dev_run else config.fp,
        qat=config.qat.tried() if config.fast_dev_run else config.qat,
        optim=config.optim,
        schedule=config.schedule,
        runtime=config.runtime,
        seed=config.seed,
        verbosity=config.verbosity,
        # Data that is not known is like no other.
        fp_key=fp_key(config, identity.training or uuid4().hex),
    )
