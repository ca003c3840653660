"""The catalogue of modes: what each says of itself is so, and nothing else knows them by name."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import repq_cli
from repq_cli.errors import ConfigError
from repq_cli.models.repvgg import RepVGG
from repq_cli.modes.calibrate import calibrate
from repq_cli.modes.catalogue import AUTO, MODES
from repq_cli.modes.compose import compose, freeze_statistics
from repq_cli.modes.options import ModeOptions
from repq_cli.quant.options import QuantOptions
from repq_cli.reparam.plain import plain_block
from repq_cli.reparam.repvgg import repvgg_block
from tests.conftest import randomise, tiny_net

PACKAGE = Path(repq_cli.__file__).parent
WORDS_OF_OTHERS = {"merged", "repq"}  # nets and kernels are merged, and repq is the program
WEIGHTS = {"pretrained/choose.py", "train/options.py"}  # whose plain weights are those that are no averages
OTHER_VALUES = {
    "stats_input": "quant", "detach_stats": True, "freeze_bn_after": 0, "estimator": "channel", "bnest_init": "none",
    "plain_bn": "folded", "merged_bn": "reinsert", "post_bn": True, "stats_fraction": 0.5,
}  # fmt: skip
COMPANIONS = ({}, {"plain_bn": "folded", "merged_bn": "reinsert"})  # without which others have no effect


def test_modes_are_known_by_name_in_the_catalogue_alone() -> None:
    """A mode that other files ask for by name could not be added by one file."""
    names = MODES.keys() - WORDS_OF_OTHERS
    found = {}
    for path in PACKAGE.rglob("*.py"):
        literals = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        own = names - {"plain"} if path.relative_to(PACKAGE).as_posix() in WEIGHTS else names
        if literals & own:
            found[path] = literals & own
    assert {path.parent for path in found} == {PACKAGE / "modes" / "catalogue"}
    assert sum(map(len, found.values())) == len(names), "each in the one file of its class"


def test_branchwise_is_its_two_files() -> None:
    spoken = {
        path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if "branchwise" in path.read_text()
    }
    assert spoken | {"modes/branchwise.py"} == {"modes/branchwise.py", "modes/catalogue/branchwise.py"}


def test_every_mode_has_its_configuration_and_looks_of_its_own() -> None:
    configs = {path.stem for path in (PACKAGE.parent / "configs" / "mode").glob("*.yaml")}
    assert configs == {AUTO, *MODES}
    for key in ("title", "order", "mark"):
        assert len({getattr(mode, key) for mode in MODES.values()}) == len(MODES), key
    assert all(mode.title and mode.__doc__ for mode in MODES.values())


def test_what_a_mode_is_can_be_asked_without_torch() -> None:
    rooms = "repq_cli.schema, repq_cli.modes.auto, repq_cli.report.document, repq_cli.report.figures.catalogue"
    subprocess.run([sys.executable, "-c", f"import sys, {rooms}; assert 'torch' not in sys.modules"], check=True)


def test_a_mode_that_is_not_decided_composes_nothing() -> None:
    with pytest.raises(ConfigError, match="mode=auto does not say how a network is composed: use one of plain, merged"):
        compose(tiny_net(repvgg_block), ModeOptions(), QuantOptions())


def _seen(options: ModeOptions, quant: QuantOptions) -> list[Tensor]:
    """Outputs and gradients of two steps of QAT as the options have it."""
    torch.manual_seed(0)
    make_block = repvgg_block if options.rule.uses_branches else plain_block
    fp_net = randomise(RepVGG(make_block, [3, 8, 8], [2, 1], 5, [1, 1]))
    x = torch.randn(4, 3, 9, 8)
    start = options.rule.starting_net(fp_net, [x], options)
    net = compose(start, options, quant)
    calibrate(net, x, quant.init, start)
    if options.freeze_bn_after == 0:
        freeze_statistics(net)
    found = []
    for _ in range(2):
        y = net.train()(x)
        y.square().mean().backward()
        found.append(y.detach())
    return found + [parameter.grad for parameter in net.parameters() if parameter.grad is not None]


def _differ(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) != len(second) or any(
        a.shape != b.shape or not torch.equal(a, b) for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("mode", MODES)
def test_the_keys_that_a_mode_names_are_those_that_change_its_training(mode: str) -> None:
    assert OTHER_VALUES.keys() == {field.name for field in fields(ModeOptions)} - {"name"}
    quant = QuantOptions(weight_bits=4, act_bits=4, init="lsq")
    used = set()
    for companions in COMPANIONS:
        options = ModeOptions(mode, **companions)  # type: ignore[arg-type]
        seen = _seen(options, quant)
        changed = {key: replace(options, **{key: value}) for key, value in OTHER_VALUES.items() if key not in used}
        used |= {key for key, other in changed.items() if _differ(seen, _seen(other, quant))}
    assert used == MODES[mode].options
