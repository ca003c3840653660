"""What is wrong with a run's inputs is found before it has a folder: data, network, and weights that it starts from.

A mistyped path must not leave a failed run in every later table.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from repq_cli import build
from repq_cli.answers import tensors
from repq_cli.cli.progress import told
from repq_cli.config import Config
from repq_cli.deploy.freeze import unsupported
from repq_cli.devices import CPU, pick_device
from repq_cli.errors import ConfigError, RepqError
from repq_cli.graphs.adopted import Adopted
from repq_cli.memory import fits, kept_by_a_step, require_memory, surely_below
from repq_cli.modes.compose import compose, layer_bits
from repq_cli.ranks import place
from repq_cli.tasks.features import Features
from repq_cli.train.arithmetic import Arithmetic
from repq_cli.train.checkpoint import fp_checkpoint
from repq_cli.train.compiled import require_compiler
from repq_cli.train.experiment import Experiment
from repq_cli.train.fp_weights import fp_choice
from repq_cli.train.spread import require_images
from repq_cli.train.trackers.tracker import require

_prepared: list[Experiment] = []  # what the run of this process was checked with, so that nothing is read twice


def prepare(config: Config) -> None:
    """Read what a run starts from, and keep it for ``taken``. Raises ConfigError or DataError."""
    _check_machine(config)
    experiment = build.experiment(config)
    _check_layers(experiment)
    _check_weights(experiment)
    _prepared[:] = [experiment]


def _check_machine(config: Config) -> None:
    """Whether what ``runtime`` asks for can be done here."""
    where = place()
    require_images(config, config.runtime.devices if where is None else where.size)
    device = pick_device(config.runtime.device)
    Arithmetic(config.runtime, device)
    require(config.runtime.trackers)
    if config.runtime.compile:
        require_compiler(device)


def taken(config: Config) -> Experiment:
    """The experiment of a configuration: the prepared one, if it is that."""
    prepared = _prepared.pop() if _prepared else None
    return prepared if prepared is not None and prepared.config == config else build.experiment(config)


def refusals(configs: Sequence[Config], quiet: bool = False) -> list[RepqError | None]:
    """For each run of a sweep what is wrong with it, or None; runs of the same data read it once.

    quiet: without saying how far it has come.
    """
    found: list[RepqError | None] = [None] * len(configs)
    weights: dict[str, RepqError | None] = {}
    numbers = sorted(range(len(configs)), key=lambda number: _data_key(configs[number]))
    ticks = told(numbers, len(numbers), "checking", quiet)
    for _, group in itertools.groupby(numbers, key=lambda number: _data_key(configs[number])):
        runs = list(group)
        loaded, error = _tried(build.data, configs[runs[0]])
        for number in runs:
            next(ticks)
            found[number] = error or _refusal(configs[number], loaded, weights)
    ticks.close()
    return found


def _refusal(config: Config, loaded: Any, weights: dict[str, RepqError | None]) -> RepqError | None:
    """What is wrong with a run on the data ``loaded``; ``weights``: what is known of files and networks so far."""
    _, error = _tried(_check_machine, config)
    if config.runtime.devices > 1:
        error = ConfigError(
            f"runtime.devices={config.runtime.devices} is for a run alone, and this is one of a sweep: use 1."
        )
    if error is not None:
        return error
    experiment, error = _tried(lambda config: build.experiment(config, loaded), config)
    if experiment is None:
        return error
    _, error = _tried(_check_layers, experiment)
    if error is not None:
        return error
    key = _text(config.fp, config.model, config.rep, experiment.signature)
    if key not in weights:
        _, weights[key] = _tried(_check_weights, experiment)
    return weights[key]


def _tried(function: Callable[[Any], Any], argument: Any) -> tuple[Any, RepqError | None]:
    """What a function gives, or the error that it raises."""
    try:
        return function(argument), None
    except RepqError as error:
        return None, error


def _data_key(config: Config) -> str:
    model = config.model.arguments
    return _text(config.data, config.task, config.plugins, model.get("scale"), model.get("colour"))


def _text(*parts: Any) -> str:
    return json.dumps(parts, sort_keys=True, default=asdict)


def _check_layers(experiment: Experiment) -> None:
    """Whether memory holds the network, ``quant.layers`` names layers that it has, and a foreign one can be shipped."""
    shapes = None
    if experiment.quant.layers or experiment.config.model.is_ours:  # others may want real tensors to begin with
        shapes = _shapes(experiment)
        _check_step(experiment, shapes)
        layer_bits(shapes, experiment.quant)
    is_known = shapes is not None and not isinstance(shapes, Adopted)
    if is_known and not isinstance(experiment.task, Features):
        return
    with torch.random.fork_rng(devices=[]):
        net = experiment.make_net()
    if isinstance(net, Adopted):
        _check_forms(experiment, net)
    _check_answers(experiment, net)


def _check_step(experiment: Experiment, shapes: nn.Module) -> None:
    """ConfigError for a training step that this machine's memory does not hold; accelerators say so themselves."""
    runtime, where = experiment.runtime, place()
    if pick_device(runtime.device) != CPU:
        return
    side = experiment.config.data.arguments.get("patch")  # of the crops of pictures that training reads
    shape = experiment.data.info.shape if side is None else (experiment.data.info.shape[0], side, side)
    if fits(experiment.batch_size * surely_below(shapes, shape)):  # following a step takes a second of a start
        return
    size = kept_by_a_step(shapes, shape) // (1 if runtime.precision == "fp32" else 2)
    here = 1 if where is None else where.local_size / where.size  # of the batch, on this machine
    require_memory(
        int(size * experiment.batch_size * here / runtime.accumulate),
        f"A training step of data.batch_size={experiment.batch_size} images {'x'.join(map(str, shape))}",
        "choose fewer images, fewer pixels, or a larger runtime.accumulate",
    )


def _check_forms(experiment: Experiment, net: nn.Module) -> None:
    """ConfigError, with all of them, for operations without a deployed form: repq's own networks have none."""
    shape, mode = experiment.data.info.shape, experiment.mode
    composed = compose(mode.rule.shaped_net(net, [torch.zeros(2, *shape)], mode), mode, experiment.quant)
    if found := unsupported(composed, shape):
        raise ConfigError(" ".join(refusal.reason for refusal in found))


def _check_answers(experiment: Experiment, net: nn.Module) -> None:
    """Whether a network gives what the task is about, by two images."""
    task, classes = experiment.task, experiment.data.info.num_classes
    x, targets = next(iter(experiment.data.val.batches(2)))
    outputs = net.eval()(x)
    sizes = ", ".join(str(list(tensor.shape)) for tensor in tensors(outputs))
    if isinstance(task, Features):
        _check_functions(experiment, task, outputs, targets, sizes)
    elif not (isinstance(outputs, Tensor) and outputs.dim() == 2 and outputs.shape[1] >= classes):
        raise ConfigError(
            f"model={experiment.model} gives {sizes} for two images, and task={task.name} wants [2, {classes}]: train "
            f"other answers by task=features and a loss of your own."
        )


def _check_functions(experiment: Experiment, task: Features, outputs: Any, targets: Tensor, sizes: str) -> None:
    config = experiment.config
    for key, function in (("loss", task.loss), ("score", task.scores)):
        try:
            found = function(outputs, targets)
        except ConfigError:
            raise
        except Exception as error:  # whatever somebody's function raises
            said = str(error).partition("\n")[0] or type(error).__name__
            raise ConfigError(
                f"{key}={getattr(config, key) or config.loss} cannot be computed of two images, for which the network "
                f"gives {sizes} and the data targets {list(targets.shape)}: {said}."
            ) from error
        if key == "loss" and not found.requires_grad:
            raise ConfigError(
                f"loss={config.loss} gives a number without a gradient to what the network gives: compute it of the "
                f"outputs with operations of torch, without detach() and item()."
            )


def _shapes(experiment: Experiment) -> nn.Module:
    """The network without data."""
    with torch.device("meta"):
        return experiment.make_net()


def _check_weights(experiment: Experiment) -> None:
    """Whether the file of ``fp.checkpoint`` fits a network without data."""
    if experiment.fp.checkpoint is not None:
        fp_choice(_shapes(experiment), fp_checkpoint(experiment.fp.checkpoint), experiment.fp, experiment.signature)
