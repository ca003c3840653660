"""``repq diagnose budget=``: bits for each layer within a budget of bit operations."""

from __future__ import annotations

import itertools
import json
import math
import random
import shlex
from pathlib import Path

import pytest
import torch
from conftest import QUICK, row_of, tiny_net

from repq_cli.cli import main
from repq_cli.errors import ConfigError
from repq_cli.models.resnet import resnet
from repq_cli.modes.calibrate import calibrate
from repq_cli.modes.compose import compose
from repq_cli.modes.options import ModeOptions
from repq_cli.quant.options import QuantOptions
from repq_cli.reparam.plain import plain_block
from repq_cli.train.bit_budget import WIDTHS, Group, Network, allocate, measured

W4A4 = QuantOptions(weight_bits=4, act_bits=4)


def test_no_other_bits_that_are_a_step_cheaper_have_less_noise(subtests: pytest.Subtests) -> None:
    drawn = random.Random(0)
    for number in range(20):
        groups = []
        for index in range(4):
            loudness = 10 ** drawn.uniform(-4, 0)
            noise = {width: loudness * 4.0**-width * drawn.uniform(0.7, 1.4) for width in WIDTHS}
            groups.append(Group((str(index),), drawn.randint(1, 50), noise))
        network = Network(groups, fixed=100)
        every = list(itertools.product(WIDTHS, repeat=4))
        largest_step = max(group.macs for group in groups) * (8**2 - 2**2)
        for budget in (1200, 3000, 6000, network.bops([8] * 4)):
            with subtests.test(number=number, budget=budget):
                bits = allocate(network, budget)
                assert network.bops(bits) <= budget
                cheaper = [other for other in every if network.bops(other) <= budget - largest_step]
                assert network.noise(bits) <= min(map(network.noise, cheaper), default=math.inf) * (1 + 1e-12)
    with pytest.raises(ConfigError, match=r"is less than the .* GBOPs of this network with 2 bits"):
        allocate(network, network.bops([2] * 4) - 1)


def test_noise_is_that_of_a_network_with_only_those_layers_quantized() -> None:
    net = resnet(plain_block, 3, 5, [1, 1, 1, 1], "cifar", 0.125).eval()
    batches = [torch.randn(6, 3, 12, 12)]
    widths_done: list[int] = []
    network = measured(net, W4A4, batches, (3, 12, 12), lambda: widths_done.append(1))
    assert len(widths_done) == len(WIDTHS)
    names = [name for group in network.groups for name in group.layers]
    assert "stem" not in names and "classifier" not in names and len(names) == len(set(names)) > 8
    assert any(len(group.layers) == 2 for group in network.groups), (
        "a shortcut's convolution reads what the block reads"
    )
    group = network.groups[0]
    assert list(group.noise) == list(WIDTHS) and group.noise[2] > group.noise[4] > group.noise[8] > 0
    layers = dict.fromkeys(names, 32) | dict.fromkeys(group.layers, 3)
    quant = QuantOptions(weight_bits=32, act_bits=32, layers=layers)  # type: ignore[arg-type]
    alone = compose(net, ModeOptions("plain"), quant).eval()
    calibrate(alone, batches[0], "min_error", net)
    with torch.no_grad():
        expected = net(batches[0])
        error = ((alone(batches[0]) - expected).square().sum() / expected.square().sum()).item()
    assert group.noise[3] == pytest.approx(error, rel=1e-3)
    same = [4] * len(network.groups)
    assert network.bops(same) - network.fixed == sum(group.macs for group in network.groups) * 16  # type: ignore[arg-type]


def test_the_override_that_it_prints_is_one(in_folder: Path, logged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spent = row_of(logged)["cost"]["bops"] / 1e9
    assert main(["diagnose", f"run={logged}", "images=16", f"budget={spent}"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("quant.weight_bits="))
    found = json.loads((logged / "diagnose" / "diagnosis.json").read_text())["budget"]
    assert found["chosen"]["gbops"] <= spent
    assert found["chosen"]["noise_db"] >= found["same_bits"]["4"]["noise_db"]
    assert main(["train", *QUICK, "qat.epochs=0", "hydra.run.dir=new", *shlex.split(line)]) == 0
    assert row_of(in_folder / "new")["cost"]["bops"] == pytest.approx(found["chosen"]["gbops"] * 1e9)
    assert main(["diagnose", f"run={logged}", "images=16", "budget=1e-6"]) == 2
    assert "is less than the" in capsys.readouterr().err


def test_a_tiny_net_of_branches_has_a_group_for_each_layer() -> None:
    network = measured(tiny_net().eval(), W4A4, [torch.randn(4, 3, 12, 11)], (3, 12, 11), lambda: None)
    assert [group.layers for group in network.groups] == [(f"blocks.{index}",) for index in range(1, 6)]
