"""Several processes train as one does: the same losses, statistics, steps and parameters, and the same run."""

from __future__ import annotations

import copy
import json
import os
import random
import signal
import socket
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import TINY, randomise, row_of
from processes import Function, Process, wait_until
from torch import Tensor, distributed, nn

from repq_cli.cli import main
from repq_cli.collective import Shared, sharing
from repq_cli.models.repvgg import repvgg
from repq_cli.modes.calibrate import calibrate
from repq_cli.modes.compose import compose
from repq_cli.modes.options import ModeOptions
from repq_cli.parts import Part
from repq_cli.quant.options import QuantOptions
from repq_cli.reparam.plain import plain_block
from repq_cli.reparam.repvgg import repvgg_block
from repq_cli.shared_norm import share_norms
from repq_cli.tasks.classification import Classification
from repq_cli.train.engine import Update
from repq_cli.train.optim import make_optimizer
from repq_cli.train.options import OptimOptions
from repq_cli.train.parallel import in_parallel
from repq_cli.train.spread import Divided, Spread
from repq_cli.train.world import ALONE, Ranks, World, world

BATCH = 11  # which two processes cannot halve
CPU = torch.device("cpu")
# Without integer biases, behind which sums are often zero: on which side of a ReLU they fall, rounding decides.
W4A4 = QuantOptions(weight_bits=4, act_bits=4, int32_bias=False)
CASES = {
    "fp": None,
    "plain": (ModeOptions("plain"), W4A4),
    "repq_bn": (ModeOptions("repq_bn", stats_fraction=0.5), W4A4),
    "repq_bnest": (ModeOptions("repq_bnest"), W4A4),
    "channel": (
        ModeOptions("repq_bnest", estimator="channel"),
        replace(W4A4, weight_bits=2, act_bits=8, act_n="numel"),
    ),
    "no batch norm": (ModeOptions("repq"), W4A4),
    "affine": (ModeOptions("repq_bn"), QuantOptions(weight_method="affine", act_method="affine", int32_bias=False)),
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
    data, lr = batches(steps), 0.05 if steps < 20 else 0.002  # differences grow tenfold a step at the higher one
    plain, free = case in ("plain", "signs"), case == "no batch norm"
    activation = "hardtanh" if case == "signs" else None
    make = plain_block if plain else partial(repvgg_block, batch_norm=not free)
    net = randomise(repvgg(make, 3, 5, [1, 1, 1, 1], [0.125] * 4, [1, 1, 2, 1, 1], activation=activation)).double()
    if composition := CASES[case]:
        fp, net = net, compose(net, *composition)
        calibrate(net, data[0][0], "min_error", fp)
    net.train()
    part = Part(among.rank, among.size, turns)
    update = Update(
        net,
        Classification(),
        make_optimizer(net, OptimOptions(name="sgd", weight_decay=1e-4, label_smoothing=0.1), lr),
        clip_norm=1.0,
        forward=in_parallel(net, None, CPU) if among.size > 1 else None,
        spread=Spread() if part.is_whole else Divided(part, BATCH),
        world=among,
    )
    losses = []
    for step, (x, targets) in enumerate(data):
        torch.manual_seed(step)
        own = part.indices(BATCH)
        losses += update.seen((x[own], targets[own]), lr)
    return losses, net.state_dict()


def as_rank(rank: int, port: int, folder: Path, steps: int) -> None:
    """What each of two processes finds."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = world()
    assert isinstance(ranks, Ranks)
    ranks.connect(CPU, 60)
    found = {case: trained(case, ranks, steps) for case in CASES}
    found["in turns"] = trained("repq_bnest", ranks, steps, turns=2)
    torch.save(found, folder / f"{rank}.pt")
    ranks.close()


def test_compiled_norms_of_a_shared_batch_learn_as_others_do() -> None:
    """By the compiler's own division into passes: what the backward one needs has not moved on with the step."""
    torch.manual_seed(0)
    made = nn.Sequential(nn.BatchNorm2d(3)).double()
    share_norms(made)
    x, weight = torch.randn(2, 4, 3, 5, 5, dtype=torch.float64) + 3
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        found = []
        for is_compiled in (False, True):
            net, own = copy.deepcopy(made).train(), x.clone().requires_grad_()
            run = torch.compile(net, backend="aot_eager_decomp_partition", fullgraph=True) if is_compiled else net
            with sharing(Shared(0, 2, 8, 8)):
                (run(own) * weight).sum().backward()
            found.append([own.grad, *(parameter.grad for parameter in net.parameters()), *net.buffers()])
    finally:
        distributed.destroy_process_group()
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-12)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.parametrize("steps", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_two_ranks_train_as_one_process(steps: int, in_folder: Path) -> None:
    """Losses, scores, statistics, steps and parameters, to the last bit on both ranks.

    Turns are of the same images however many ranks there are; without batch norm they change nothing.
    """
    port = free_port()
    processes = [Function(as_rank, rank, port, in_folder, steps) for rank in range(2)]
    alone = {case: trained(case, ALONE, steps) for case in CASES}
    in_turns, at_once = trained("no batch norm", ALONE, steps, turns=3)[0], alone["no batch norm"][0]
    assert in_turns == pytest.approx(at_once, rel=3e-7 if steps < 20 else 1e-5)
    alone["in turns"] = trained("repq_bnest", ALONE, steps, turns=2)
    assert [process.wait() for process in processes] == [0, 0], Path("log").read_text()
    first, second = (torch.load(in_folder / f"{rank}.pt") for rank in range(2))
    for case, (losses, state) in alone.items():
        assert first[case][0] == second[case][0], case
        assert first[case][0] == pytest.approx(losses, rel=3e-7 if steps < 20 else 1e-5), case  # in float32
        for key, value in state.items():
            assert torch.equal(first[case][1][key], second[case][1][key]), (case, key)
            if steps < 20:  # later one code on the edge may have gone another way
                torch.testing.assert_close(first[case][1][key], value, rtol=1e-7, atol=1e-9, msg=f"{case} {key}")


def ranks_of(*arguments: str, log: str = "log") -> list[Process]:
    """``repq`` as two processes, as torchrun starts them."""
    where = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [Process(*arguments, log=log, RANK=str(rank), **where) for rank in range(2)]


SMALL = ["train", *TINY, "quant=w4a4", "mode=repq_bnest", "data.batch_size=101", "runtime.log_every=1"]


def test_a_run_whose_other_rank_is_killed_says_so_and_one_process_goes_on(in_folder: Path) -> None:
    """There is one folder, and everything in it is rank 0's."""
    arguments = [*SMALL, "fp.epochs=2", "runtime.checkpoint_steps=2"]
    processes = ranks_of(*arguments)
    wait_until(lambda: any(in_folder.glob("outputs/train/*/checkpoints/last.pt")), processes[0])
    processes[1].send(signal.SIGKILL)
    assert [process.wait(60) for process in processes] == [1, -signal.SIGKILL]
    (folder,) = in_folder.glob("outputs/train/*")
    row = row_of(folder)
    assert row["status"] == "failed"
    assert f"Rank 1 ({socket.gethostname()}, process {processes[1].pid}) died without a word" in row["error"]
    assert "Rank 1" in Path("log").read_text()
    assert main(["train", f"resume={folder}"]) == 0
    row = row_of(folder)
    assert row["status"] == "done" and row["metric"]["deployed"] == row["metric"]["qat"]
    steps = [
        json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines() if '"loss"' in line
    ]
    assert steps == [*range(1, 25), *range(1, 13)]


def test_the_short_form_starts_processes_and_gives_their_exit_code(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By torchrun's own machinery; what it starts is no Python here, which would take long to begin."""
    python = in_folder / "python"
    python.write_text('#!/bin/sh\necho "$WORLD_SIZE $PYTHONSAFEPATH $@" > rank-$RANK\nexit $(cat exit-$RANK)\n')
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))
    for rank in range(2):
        Path(f"exit-{rank}").write_text("0")
    arguments = ["train", *TINY, "quant=w4a4", "runtime.devices=2"]
    for code in (0, 3):
        Path("exit-1").write_text(str(code))
        assert main(arguments) == code
    assert {Path(f"rank-{rank}").read_text() for rank in range(2)} == {f"2 1 -m repq_cli {' '.join(arguments)}\n"}
    assert not list(in_folder.glob("outputs/train/*"))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_short_form_trains_one_run(in_folder: Path) -> None:
    assert Process(*SMALL, "runtime.devices=2", "hydra.run.dir=run").wait(600) == 0, Path("log").read_text()
    row = row_of(in_folder / "run")
    assert row["status"] == "done" and row["metric"]["deployed"] == row["metric"]["qat"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_hangs_ends_the_run(victim: int, in_folder: Path) -> None:
    """It is stopped while it lives, and so is whoever has the store where rank 0 is; the other one says so and ends."""
    processes = ranks_of(*SMALL, "fp.epochs=50", "runtime.rank_timeout=30", "hydra.run.dir=run")
    wait_until(lambda: (in_folder / "run/checkpoints/last.pt").exists(), processes[0])
    processes[victim].send(signal.SIGSTOP)
    assert processes[1 - victim].wait(300) == 1
    processes[victim].send(signal.SIGKILL)
    assert processes[victim].wait() == -signal.SIGKILL
    said = Path("log").read_text()
    assert (f"Rank 1 ({socket.gethostname()}, process {processes[1].pid}) died" if victim else "Rank 0") in said
    assert "Traceback" not in said


def test_what_several_processes_cannot_share_is_refused(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one sentence, before anything has a folder."""
    with monkeypatch.context() as patch:
        for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.items():
            patch.setenv(name, value)
        patch.setenv("MASTER_PORT", str(free_port()))
        patch.setattr("repq_cli.train.world._world", ALONE)
        for said, arguments in {
            "has not an image for each of 2 processes in each of 2 turns": [
                "data.batch_size=3",
                "runtime.accumulate=2",
            ],
            "leaves 1 images of a turn for statistics, fewer than 2 processes": [
                "data.batch_size=8",
                "runtime.accumulate=2",
                "mode.stats_fraction=0.25",
            ],
            "A sweep (-m) is started once, and torchrun starts it 2 times": ["-m", "seed=0,1"],
            "runtime.devices=3 is not the number of processes that torchrun has started, 2": ["runtime.devices=3"],
        }.items():
            assert main(["train", *TINY, "quant=w4a4", "mode=repq_bnest", *arguments]) == 2
            assert said in capsys.readouterr().err
        assert main(["table"]) == 2
        assert "torchrun starts repq table 2 times: it is for repq train" in capsys.readouterr().err
    assert main(["train", *TINY, "quant=w4a4", "runtime.devices=2", "-m", "seed=0,1"]) == 2
    assert "runtime.devices=2 is for a run alone" in capsys.readouterr().err
    assert not list(in_folder.glob("outputs/*/*"))


def travelling(net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """How many numbers one of two ranks gives to sums over ranks in a training step for statistics, and how often."""
    counts: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr("torch.distributed.all_reduce", lambda values: counts.append(values.numel()))
        x = torch.randn(2, 3, 64, 64)
        with sharing(Shared(0, 2, 4, 4)):
            net.train()(x).sum().backward()
    return sum(counts), len(counts)


@pytest.mark.slow
def test_estimates_want_a_third_of_the_traffic_of_batch_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """On RepVGG-A0, against torch's SyncBatchNorm: 2 C + 1 numbers forward and 2 C backward for each batch norm."""
    fp = repvgg(repvgg_block, 3, 1000, [2, 4, 14, 1], [0.75, 0.75, 0.75, 2.5], [2, 2, 2, 2, 2])
    norms = [module.num_features for module in fp.modules() if isinstance(module, nn.BatchNorm2d)]
    synchronised = sum(4 * channels + 1 for channels in norms)
    own = copy.deepcopy(fp)
    share_norms(own)
    found = {"fp": travelling(own, monkeypatch)}
    for mode, estimator in (("repq_bn", "offset"), ("repq_bnest", "offset"), ("repq_bnest", "channel")):
        net = compose(fp, ModeOptions(mode, estimator=estimator), QuantOptions(weight_bits=32, act_bits=32))
        found[f"{mode} {estimator}"] = travelling(net, monkeypatch)
    print(f"\nSyncBatchNorm {synchronised} numbers, {2 * len(norms)} operations")
    for name, (numbers, operations) in found.items():
        print(f"{name:18} {numbers:7} numbers, {operations:3} operations, {numbers / synchronised:.3f}")
    print(f"gradients {sum(parameter.numel() for parameter in fp.parameters())}")
    assert found["repq_bnest channel"][0] <= synchronised / 3
    assert found["repq_bn offset"][0] <= synchronised


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_runs_of_ranks_killed_at_random_end_with_the_same_bytes(in_folder: Path) -> None:
    """Ten kills of either rank, each run going on until it is done; an unbroken run has the same files."""
    draw = random.Random(0)
    arguments = [*SMALL, "fp.epochs=2", "runtime.checkpoint_steps=3", "verbosity=normal"]
    for process in ranks_of(*arguments, "hydra.run.dir=unbroken"):
        assert process.wait(300) == 0, Path("log").read_text()
    kills, number = 0, 0
    while kills < 10:
        folder = in_folder / f"run-{number}"
        number, log = number + 1, f"log-{number}"
        command = [*arguments, f"hydra.run.dir={folder.name}"]
        while row_of(folder).get("status") != "done" if (folder / "summary.json").exists() else True:
            processes = ranks_of(*command, log=log)
            deadline = time.monotonic() + draw.uniform(5, 40)
            while kills < 10 and time.monotonic() < deadline and any(process.is_alive() for process in processes):
                time.sleep(0.05)
            if kills < 10 and all(process.is_alive() for process in processes):
                victim = draw.randrange(2)
                processes[victim].send(signal.SIGKILL)
                kills, killed = kills + 1, time.monotonic()
                processes[1 - victim].wait(60)
                print(f"killed rank {victim}: the other ended after {time.monotonic() - killed:.1f} s")
            for process in processes:
                process.wait(300)
            command = ["train", f"resume={folder.name}"] if (folder / "config.yaml").exists() else command
        for name in ("metrics.jsonl", "weights.json", "deploy/model.json", "deploy/model.safetensors"):
            assert (folder / name).read_bytes() == (in_folder / "unbroken" / name).read_bytes(), (folder, name)
