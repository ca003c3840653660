"""Several processes train as one does: the same losses, statistics, steps and parameters, and the same run."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
from conftest import randomise
from processes import Function
from torch import Tensor

from repq_cli.models.repvgg import repvgg
from repq_cli.modes.calibrate import calibrate
from repq_cli.modes.compose import compose
from repq_cli.modes.options import ModeOptions
from repq_cli.parts import Part
from repq_cli.quant.options import QuantOptions
from repq_cli.reparam.plain import plain_block
from repq_cli.reparam.repvgg import repvgg_block
from repq_cli.tasks.classification import Classification
from repq_cli.train.engine import Update
from repq_cli.train.optim import make_optimizer
from repq_cli.train.options import OptimOptions
from repq_cli.train.parallel import in_parallel
from repq_cli.train.spread import Divided, Spread
from repq_cli.train.world import ALONE, Ranks, World, world

BATCH = 11  # which two processes cannot halve
CPU = torch.device("cpu")
W4A4 = QuantOptions(weight_bits=4, act_bits=4)
CASES = {
    "fp": None,
    "plain": (ModeOptions("plain"), W4A4),
    "repq_bn": (ModeOptions("repq_bn", stats_fraction=0.5), W4A4),
    "repq_bnest": (ModeOptions("repq_bnest"), W4A4),
    "channel": (ModeOptions("repq_bnest", estimator="channel"), QuantOptions(weight_bits=2, act_bits=8, act_n="numel")),
    "affine": (ModeOptions("repq_bn"), QuantOptions(weight_method="affine", act_method="affine")),
    "signs": (
        ModeOptions("plain"),
        QuantOptions(weight_method="sign", act_method="sign", weight_bits=1, act_bits=1, stochastic=True),
    ),
}


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(BATCH, 3, 12, 11, generator=generator, dtype=torch.float64),
            torch.randint(0, 5, (BATCH,), generator=generator),
        )
        for _ in range(count)
    ]


def trained(case: str, among: World, steps: int, turns: int = 1) -> tuple[list[float], dict[str, Tensor]]:
    """The losses and the state after some steps in float64, where rounding decides nothing."""
    torch.manual_seed(0)
    data = batches(steps)
    plain = case in ("plain", "signs")
    activation = "hardtanh" if case == "signs" else None
    make = plain_block if plain else repvgg_block
    net = randomise(repvgg(make, 3, 5, [1, 1, 1, 1], [0.125] * 4, [1, 1, 2, 1, 1], activation=activation)).double()
    if composition := CASES[case]:
        fp, net = net, compose(net, *composition)
        calibrate(net, data[0][0], "min_error", fp)
    net.train()
    part = Part(among.rank, among.size, turns)
    update = Update(
        net,
        Classification(),
        make_optimizer(net, OptimOptions(name="sgd", weight_decay=1e-4, label_smoothing=0.1), 0.05),
        clip_norm=1.0,
        forward=in_parallel(net, None, CPU) if among.size > 1 else None,
        spread=Spread() if part.is_whole else Divided(part, BATCH),
        world=among,
    )
    losses = []
    for step, (x, targets) in enumerate(data):
        torch.manual_seed(step)
        own = part.indices(BATCH)
        losses += update.seen((x[own], targets[own]), 0.05)
    return losses, net.state_dict()


def as_rank(rank: int, port: int, folder: Path, steps: int) -> None:
    """What each of two processes finds."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = world()
    assert isinstance(ranks, Ranks)
    ranks.connect(CPU, 60)
    found = {case: trained(case, ranks, steps) for case in CASES}
    torch.save(found, folder / f"{rank}.pt")
    ranks.close()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_two_ranks_train_as_one_process(in_folder: Path) -> None:
    """Losses, scores, statistics, steps and parameters, to the last bit on both ranks."""
    port, steps = free_port(), 4
    processes = [Function(as_rank, rank, port, in_folder, steps) for rank in range(2)]
    alone = {case: trained(case, ALONE, steps) for case in CASES}
    assert [process.wait() for process in processes] == [0, 0], Path("log").read_text()
    first, second = (torch.load(in_folder / f"{rank}.pt") for rank in range(2))
    for case, (losses, state) in alone.items():
        assert first[case][0] == second[case][0], case
        assert first[case][0] == pytest.approx(losses, rel=3e-7), case  # in float32
        for key, value in state.items():
            assert torch.equal(first[case][1][key], second[case][1][key]), (case, key)
            torch.testing.assert_close(first[case][1][key], value, rtol=1e-7, atol=1e-9, msg=f"{case} {key}")
