"""Every quantizer learns, freezes exactly and evaluates with every block, without branches and inside RepQ.

The default suite runs each quantizer and each option of one once, by turns without branches and with RepVGG's; ``-m
slow`` runs all combinations.
"""

from __future__ import annotations

import copy
import functools
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from test_matrix import Combination
from torch import nn

from repq_cli import build
from repq_cli.cli.jobs import compose_plain
from repq_cli.data import digits
from repq_cli.data.base import Data
from repq_cli.deploy.check import compare
from repq_cli.deploy.freeze import freeze
from repq_cli.deploy.network import DeployedNet
from repq_cli.library.networks import names
from repq_cli.modes.calibrate import calibrate
from repq_cli.modes.compose import compose
from repq_cli.modes.restated_norms import to_estimated_statistics
from repq_cli.tasks.classification import Classification
from repq_cli.train.engine import evaluate, training_step
from repq_cli.train.optim import make_optimizer
from repq_cli.train.options import OptimOptions

# Many cases of lines that other tests cover as well; one worker trains the FP nets that they share.
pytestmark = [pytest.mark.no_cover, pytest.mark.xdist_group("every_quantizer")]

SMALL = ["model.width=0.125", "model.blocks=[1,1,1,1]"]
FP_STEPS, QAT_STEPS, ONE_BIT_STEPS = 40, 10, 30
FP_RATE, QAT_RATE, ONE_BIT_RATE = 0.05, 0.005, 0.03  # signs change only with larger steps
CHANCE = 10.0  # percent: ten digits

REPS = ("none", "repvgg", "acnet", "orepa")
MODES = ("plain", "repq", "repq_bn", "repq_bnest")
QUANTS: dict[str, list[str]] = {
    **{name: [] for name in names("quant") if name not in ("fp32", "w2a2", "w4a4", "w8a8")},  # see test_matrix.py
    "bnn stochastic": ["quant.stochastic=true"],
    "xnor with K": ["quant.input_scale=true"],
    "w2a2 ternary": ["quant.symmetric=true"],
    "int8_affine": ["quant.act_delay=10"],
    "int8_affine at four bits": ["quant.weight_bits=4", "quant.act_bits=4", "quant.granularity=channel"],
    "w4a4 lsqplus": ["quant.act_method=lsqplus", "model.activation=hardtanh"],
    "w2a4 twn and lsq": ["quant.weight_bits=2", "quant.weight_method=twn"],
}
OPTIONS_OF_THEIR_OWN = [name for name in QUANTS if " " not in name]
OPTION = {"w2a4 twn and lsq": "w4a4"}  # where the first word names no file


# Drawn signs of OREPA's scaled branches want more than these steps: they have a test of their own.
ALL = [
    combination
    for combination in itertools.product(["resnet18_cifar"], REPS, MODES, QUANTS)
    if (combination[1], combination[3]) != ("orepa", "bnn stochastic")
]

# A quantizer sees a kernel, wherever a mode takes it from: pairs of both are for tests/test_matrix.py and the slow run.
# Options of a quantizer, whose names have several words, meet RepQ-BN; blocks of other branches than RepVGG's some.
TURNS = (("none", "plain"), ("repvgg", "repq"), ("repvgg", "repq_bnest"))
MAIN = [("resnet18_cifar", *TURNS[number % len(TURNS)], quant) for number, quant in enumerate(OPTIONS_OF_THEIR_OWN)]
OTHER_BLOCKS = [
    ("resnet18_cifar", "orepa", "repq", "bwn"),
    ("resnet18_cifar", "acnet", "repq", "xnor"),
]
VARIANTS = [
    combination
    for combination in ALL
    if combination[1:3] == ("repvgg", "repq_bn") and combination[3] not in OPTIONS_OF_THEIR_OWN
]


@functools.cache
def data() -> Data:
    return digits.load(size=8, crop=0)


def configuration(combination: Combination) -> dict[str, Any]:
    model, rep, mode, quant = combination
    option = OPTION.get(quant, quant.split()[0])
    groups = [f"+model={model}", f"rep={rep}", f"mode={mode}", f"quant={option}"]
    return compose_plain([*groups, *SMALL, "data.size=8", *QUANTS[quant]])


@functools.cache
def fp_state(rep: str, activation: str | None) -> dict[str, torch.Tensor]:
    """Weights after some steps of full precision; both are all that these depend on."""
    config = compose_plain(["+model=resnet18_cifar", f"rep={rep}", f"model.activation={activation or 'null'}", *SMALL])
    torch.manual_seed(0)
    net = build.network_maker(config, data().info)()
    train(net, FP_STEPS, FP_RATE)
    return net.state_dict()


def train(net: nn.Module, steps: int, lr: float) -> list[float]:
    """The loss of every step."""
    net.train()
    optimizer, task = (
        make_optimizer(net, OptimOptions(name="sgd", weight_decay=1e-4, label_smoothing=0.0), lr),
        Classification(),
    )
    epochs = itertools.chain.from_iterable(data().train.training_batches(64, epoch) for epoch in itertools.count())
    return [training_step(net, batch, task, optimizer, lr, None)[0] for batch in itertools.islice(epochs, steps)]


def check_learns(combination: Combination, folder: Path, steps: int | None = None) -> None:
    config = configuration(combination)
    mode, quant = config.mode, config.quant
    few, rate = (ONE_BIT_STEPS, ONE_BIT_RATE) if quant.weight_bits == 1 else (QAT_STEPS, QAT_RATE)
    rep = "none" if mode.name == "plain" else config.rep.name
    net = build.network_maker(config, data().info)()
    net.load_state_dict(copy.deepcopy(fp_state(rep, config.model.activation)))
    first = next(data().train.training_batches(64, 0))[0]
    start = to_estimated_statistics(net, [first], mode.estimator) if mode.name == "repq_bnest" else net
    composed = compose(start, mode, quant)
    calibrate(composed, first, quant.init, start)
    kernels = {name: weight for name, weight in composed.named_parameters() if weight.dim() == 4}
    reached: set[str] = set()
    for name, weight in kernels.items():
        weight.register_hook(lambda gradient, name=name: reached.add(name) if gradient.any() else None)
    losses = train(composed, steps or few, rate)
    still = [name for name, weight in kernels.items() if weight.grad is not None and name not in reached]
    assert not still, f"no gradient reaches {still}"
    assert sum(losses[-3:]) / 3 < losses[0]
    assert evaluate(composed, data().tests["test"], Classification(), torch.device("cpu")) > 3 * CHANCE
    freeze(composed, {"input_shape": list(data().info.shape)}).save(folder)
    images = [x for x, _ in data().val.batches(64)]
    agreement = compare(composed, DeployedNet.load(folder), images, Classification().agreement)
    assert agreement.max_abs == 0
    assert agreement.max_lsb in (None, 0)
    assert agreement.answers == 100


@pytest.mark.parametrize("combination", [*MAIN, *VARIANTS, *OTHER_BLOCKS], ids=", ".join)
def test_every_quantizer_learns(combination: Combination, tmp_path: Path) -> None:
    check_learns(combination, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("combination", ALL, ids=", ".join)
def test_every_combination_learns(combination: Combination, tmp_path: Path) -> None:
    check_learns(combination, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["repq_bn", "repq_bnest"])
def test_drawn_signs_of_orepa_learn_in_more_steps(mode: str, tmp_path: Path) -> None:
    check_learns(("resnet18_cifar", "orepa", mode, "bnn stochastic"), tmp_path, steps=4 * ONE_BIT_STEPS)
