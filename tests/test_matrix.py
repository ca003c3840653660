"""Every legal combination of model, block, mode and quantizer is a whole run; every other is refused with the reason.

In the default suite every pair of choices meets in a network that trains a step of either stage and ships, and variants
of each are whole runs; ``-m slow`` runs all of them.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
from conftest import random_data

from repq_cli import build
from repq_cli.cli.jobs import compose_plain
from repq_cli.deploy.check import compare
from repq_cli.deploy.freeze import freeze
from repq_cli.deploy.network import DeployedNet
from repq_cli.errors import ConfigError
from repq_cli.library.networks import names
from repq_cli.modes.calibrate import calibrate
from repq_cli.modes.compose import compose
from repq_cli.tasks.classification import Classification
from repq_cli.train.engine import training_step
from repq_cli.train.optim import make_optimizer
from repq_cli.train.runner import run

pytestmark = pytest.mark.no_cover  # many cases of lines that other tests cover as well

SMALL = ["model.width=0.0625", "data.batch_size=10", "quant.init=lsq"]
SHORT = [
    "fp.epochs=1",
    "fp.reuse=false",
    "qat.epochs=1",
    "runtime.tensorboard=false",
    "runtime.threads=1",
    "verbosity=quiet",
]

SHALLOW = ["model.blocks=[1,1,1,1]"]
MODELS = {
    "repvgg_a0": SHALLOW,
    "repvgg_a0_cifar": SHALLOW,
    "repvgg_b0": SHALLOW,
    "repvgg_b0 g2": [*SHALLOW, "model.groups=2"],
    "resnet18": SHALLOW,
    "resnet18_cifar": SHALLOW,
}
# Too deep to meet every other choice; what is theirs alone are depthwise layers and linear projections.
MOBILENETS = [
    ("mobilenet_v1", "repvgg", "repq_bnest", "w8a8"),
    ("mobilenet_v2", "none", "plain", "w4a4 per tensor, raw shortcuts"),
]
MORE_MOBILENETS = [
    ("mobilenet_v2", "acnet", "repq_bn", "w2a2"),
    ("mobilenet_v1", "none", "plain folded", "w4a4 per tensor, raw shortcuts"),
    ("mobilenet_v2", "repvgg", "branchwise", "w4a4"),
]
REPS = {
    **{name: [] for name in names("rep") if name not in ("ecb", "sesr", "own")},  # without batch norm, and foreign
    "orepa vgg": ["rep.vgg=true"],
    "qarepvgg v1": ["rep.variant=v1"],
}
MODES = {
    "plain": [],
    "plain folded": ["mode.plain_bn=folded"],
    "merged": [],
    "merged reinsert": ["mode.merged_bn=reinsert"],
    "repq": [],
    "repq_bn": [],
    "repq_bn codes": ["mode.stats_input=quant", "mode.detach_stats=true"],
    "repq_bnest": [],
    "repq_bnest channel": ["mode.estimator=channel", "mode.bnest_init=none"],
    "ptq": [],
    "branchwise": [],
}
QUANTS = {
    "w8a8": [],
    "w4a4": [],
    "w2a2": [],
    "fp32": [],
    "w4a4 per tensor, raw shortcuts": ["quant.granularity=tensor", "quant.act_n=numel", "quant.residual=fp"],
    "w2a2 ends too": ["quant.first_last=same", "quant.init=min_error"],
    "w4a4 weights only, float ends": ["quant.act_bits=32", "quant.first_last=fp"],
}
FACTORS = (MODELS, REPS, MODES, QUANTS)
Combination = tuple[str, str, str, str]


def reason(combination: Combination) -> str | None:
    """Why a combination is no experiment, or None."""
    _, rep, mode, quant = combination
    if rep == "none" and mode.startswith("merged"):
        return "has nothing to merge with rep=none"
    if rep == "none" and mode == "branchwise":
        return "has no branches to quantize with rep=none"
    if mode == "branchwise" and quant == "fp32":
        return "has nothing to quantize at quant.weight_bits=32"
    return None


ALL = list(itertools.product(*FACTORS))
LEGAL = [combination for combination in ALL if reason(combination) is None]
# Variants of a block, a mode or a quantizer do not meet everything else in the default suite: one choice is their own.
WHOLE = [
    ("repvgg_a0", "mobileone_k1", "repq_bn", "w4a4"),
    ("repvgg_b0 g2", "acnet", "branchwise", "w2a2 ends too"),
    ("repvgg_b0", "qarepvgg v1", "merged", "w8a8"),
    ("resnet18_cifar", "repvgg", "repq_bnest", "w4a4 weights only, float ends"),
]
VARIANTS = [
    ("resnet18", "acnet", "plain folded", "w2a2"),
    ("resnet18_cifar", "dbb", "merged reinsert", "w4a4"),
    ("repvgg_b0", "acnet", "repq_bnest channel", "w8a8"),
    ("resnet18", "qarepvgg", "repq_bn codes", "w2a2 ends too"),
    ("repvgg_a0", "none", "plain", "w4a4 weights only, float ends"),
    ("repvgg_a0", "orepa vgg", "repq_bn codes", "w4a4"),
    ("repvgg_b0 g2", "orepa vgg", "merged reinsert", "w2a2 ends too"),
    ("resnet18_cifar", "orepa vgg", "branchwise", "w8a8"),
    ("repvgg_a0_cifar", "orepa vgg", "repq_bnest", "w2a2"),
    ("repvgg_a0", "qarepvgg v1", "repq_bnest channel", "w2a2"),
    ("resnet18", "qarepvgg v1", "ptq", "w4a4"),
    ("repvgg_b0 g2", "qarepvgg v1", "repq", "w4a4 per tensor, raw shortcuts"),
]
VARIANTS_OF_MODES = ("plain folded", "merged reinsert", "repq_bn codes", "repq_bnest channel")
VARIANTS_OF_QUANTIZERS = ("w2a2 ends too", "w4a4 weights only, float ends")
MAIN = [
    combination
    for combination in LEGAL
    if combination[0] != "repvgg_b0"  # a wider A0
    and combination[1] not in ("orepa vgg", "qarepvgg v1", "mobileone_k1")
    and combination[2] not in VARIANTS_OF_MODES
    and combination[3] not in VARIANTS_OF_QUANTIZERS
]


def pairs(combination: Combination) -> set[tuple[tuple[int, str], ...]]:
    return set(itertools.combinations(enumerate(combination), 2))


def covering(combinations: list[Combination]) -> list[Combination]:
    """Combinations in which every pair of choices meets: greedily the one with the most pairs still missing."""
    missing = set().union(*map(pairs, combinations))
    chosen = []
    while missing:
        best = max(combinations, key=lambda combination: len(pairs(combination) & missing))
        chosen.append(best)
        missing -= pairs(best)
    return chosen


def overrides(combination: Combination) -> list[str]:
    model, rep, mode, quant = combination
    extras = [options.get(choice, []) for options, choice in zip(FACTORS, combination, strict=True)]
    groups = [
        f"+model={model.split()[0]}",
        f"rep={rep.split()[0]}",
        f"mode={mode.split()[0]}",
        f"quant={quant.split()[0]}",
    ]
    return [*groups, *SMALL, *SHORT, *itertools.chain(*extras)]


def is_quantized(combination: Combination) -> bool:
    """Whether activations are."""
    return combination[3] not in ("fp32", "w4a4 weights only, float ends")


def check_run(combination: Combination, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of FP, two of QAT, frozen: the files are exactly the trained net."""
    monkeypatch.setattr(build, "data", lambda config: random_data())
    row = run(build.experiment(compose_plain(overrides(combination))), folder)
    assert row["status"] == "done"
    assert row["checks"]["freeze_max_abs"] == 0
    assert row["checks"]["freeze_top1_agreement"] == 100
    assert row["checks"]["freeze_max_lsb"] == (0 if is_quantized(combination) else None)
    assert ("branchwise" in row) == (combination[2] == "branchwise")


@pytest.mark.parametrize("combination", [*covering(MAIN), *VARIANTS], ids=", ".join)
def test_every_pair_of_choices(combination: Combination, tmp_path: Path) -> None:
    """A step of FP, one of QAT, frozen: the files are exactly the trained net. A run does so in a folder."""
    config, data = compose_plain(overrides(combination)), random_data(10)
    ((x, y),) = data.train.batches(10)
    mode, quant, task = config.mode, config.quant, Classification()
    fp_net, optim = build.network_maker(config, data.info)(), config.optim
    training_step(fp_net.train(), (x, y), task, make_optimizer(fp_net, optim, 0.05), 0.05, None)
    start = mode.rule.starting_net(fp_net, [x], mode)
    net = compose(start, mode, quant)
    calibrate(net, x, quant.init, start)
    if mode.rule.trains:
        loss, _ = training_step(net.train(), (x, y), task, make_optimizer(net, optim, 0.01), 0.01, None)
        assert math.isfinite(loss)
    shipped = mode.rule.shipped_net(net, quant.init)
    freeze(shipped, {"task": task.name, **data.info.description()}).save(tmp_path)
    agreement = compare(shipped, DeployedNet.load(tmp_path), [x], task.agreement)
    assert (agreement.max_abs, agreement.answers) == (0, 100)
    assert agreement.max_lsb == (0 if is_quantized(combination) else None)


@pytest.mark.parametrize("combination", [*WHOLE, *MOBILENETS], ids=", ".join)
def test_variants_are_whole_runs(combination: Combination, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_run(combination, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("combination", [*LEGAL, *MORE_MOBILENETS], ids=", ".join)
def test_every_combination(combination: Combination, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_run(combination, tmp_path, monkeypatch)


def test_the_covering_set_covers() -> None:
    chosen = covering(MAIN)
    assert set().union(*map(pairs, chosen)) == set().union(*map(pairs, MAIN))
    assert len(chosen) < 80 and {*VARIANTS, *WHOLE} <= set(LEGAL)


REFUSED = [  # what is wrong with a block and a mode is so with every quantizer
    combination
    for combination in itertools.product(["resnet18"], REPS, MODES, ["w8a8", "fp32"])
    if reason(combination) and (combination[3] == "w8a8" or reason((*combination[:3], "w8a8")) is None)
]


def test_combinations_without_meaning_are_refused_with_the_reason(subtests: pytest.Subtests) -> None:
    for combination in REFUSED:
        with subtests.test(combination=str(combination)), pytest.raises(ConfigError, match=reason(combination)):
            compose_plain(overrides(combination))
