"""Parts of training: rates, groups, checkpoints, and what happens when numbers stop being numbers."""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import tiny_net
from torch import nn

from repq_cli.data.base import Batch, DataInfo, InMemory, Split
from repq_cli.devices import pick_device
from repq_cli.errors import CheckError, ConfigError, DataError, Interrupted
from repq_cli.files import write_atomically
from repq_cli.modes.calibrate import calibrate
from repq_cli.modes.compose import compose
from repq_cli.modes.options import ModeOptions
from repq_cli.quant.options import QuantOptions
from repq_cli.reparam.repvgg import repvgg_blocks
from repq_cli.runs.closing import closing_time
from repq_cli.runs.folder import RunFolder
from repq_cli.tasks.classification import Classification
from repq_cli.tasks.super_resolution import SuperResolution
from repq_cli.train import checkpoint
from repq_cli.train.divergence import chance, require_usable_images
from repq_cli.train.engine import EpochTotals, StepTimer, Update, evaluate, training_step
from repq_cli.train.interrupt import stop_request
from repq_cli.train.log import RunLog, logger, logging_to
from repq_cli.train.optim import (
    learning_rate,
    leaves_out_steps,
    make_optimizer,
    parameter_groups,
    patterns_without_match,
)
from repq_cli.train.options import OptimOptions, ScheduleOptions


def test_cosine_starts_at_the_peak_and_ends_at_the_final_rate() -> None:
    rates = [learning_rate(ScheduleOptions("cosine", 0, 0.1), 2.0, step, 100, 10) for step in range(101)]
    assert rates[0] == 2.0
    assert rates[50] == pytest.approx((2.0 + 0.2) / 2)
    assert rates[100] == pytest.approx(0.2)
    assert rates == sorted(rates, reverse=True)


def test_warm_up_rises_linearly_below_the_peak() -> None:
    rates = [learning_rate(ScheduleOptions("constant", 0.4), 1.0, step, 100, 10) for step in range(6)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_only_kernels_decay() -> None:
    net = compose(tiny_net(), ModeOptions("repq_bn"), QuantOptions(weight_bits=4, act_bits=4))
    decayed, free = parameter_groups(net, OptimOptions(name="sgd", weight_decay=0.1, label_smoothing=0.0))
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    assert all(names[id(p)].endswith(("conv.weight", "linear.weight")) for p in decayed["params"])
    assert {names[id(p)].rpartition(".")[2] for p in free["params"]} == {"weight", "bias", "raw_step"}
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    assert len(decayed["params"]) + len(free["params"]) == len(names)


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_optimisers(name: str, kind: type) -> None:
    assert isinstance(
        make_optimizer(nn.Linear(2, 2), OptimOptions(name=name, weight_decay=1e-4, label_smoothing=0.0), 0.1), kind
    )


def test_a_fused_optimiser_leaves_out_a_step_and_takes_over_an_older_one() -> None:
    """Its very first step too, of which torch would keep memory that nobody has written."""
    for name in ("sgd", "adamw"):
        options = OptimOptions(name=name, weight_decay=1e-2, label_smoothing=0.0)
        net = quantized()
        twin, data = copy.deepcopy(net), (torch.randn(8, 3, 12, 11), torch.arange(8) % 5)
        update, other = (Update(each, Classification(), make_optimizer(each, options, 0.1)) for each in (net, twin))
        poisoned = (torch.full_like(data[0], torch.nan), data[1])
        before = {key: value.clone() for key, value in net.named_parameters()}
        assert update.unseen(poisoned, 0.1)[1].isnan()
        assert all(torch.equal(before[key], value) for key, value in net.named_parameters())
        net.load_state_dict(twin.state_dict())  # the running averages, which have seen the batch
        found = [update.unseen(data, 0.1).tolist() for _ in range(3)]
        assert [[loss, score] for loss, _, score in found] == [list(other.seen(data, 0.1)) for _ in range(3)], name
        older = make_optimizer(twin, options, 0.1)
        for group in older.param_groups:
            group["fused"] = False
        assert leaves_out_steps(update.optimizer) and not leaves_out_steps(older)
        update.optimizer.load_state_dict(older.state_dict())
        assert not leaves_out_steps(update.optimizer), "a run goes on as it began, bit for bit"


def test_a_run_does_not_import_the_compiler() -> None:
    """It would take a quarter of the time from the command to the first step, and some seconds at the end."""
    code = (
        "import sys, torch\n"
        "from repq_cli.cli import main\n"
        "from repq_cli.cli.jobs import compose_plain\n"
        "from repq_cli.cli.preflight import prepare, taken\n"
        "from repq_cli.train.exported import will_be_floating\n"
        "from repq_cli.train.optim import make_optimizer\n"
        "config = compose_plain(['+model=repvgg_a0', 'model.width=0.125', 'quant=w4a4'])\n"
        "prepare(config)\n"
        "list(will_be_floating(taken(config)))\n"
        "orepa = ['+model=resnet18_cifar', 'model.width=0.0625', 'rep=orepa', 'fast_dev_run=true', 'verbosity=quiet']\n"
        "assert main(['train', *orepa]) == 0\n"
        "for name in ('sgd', 'adamw'):\n"
        "    net = torch.nn.Linear(2, 2)\n"
        "    optimizer = make_optimizer(net, compose_plain(['+model=repvgg_a0', f'optim={name}']).optim, 0.1)\n"
        "    net(torch.ones(1, 2)).sum().backward()\n"
        "    optimizer.step()\n"
        "    optimizer.zero_grad()\n"
        "    optimizer.load_state_dict(optimizer.state_dict())\n"
        "assert not {'torch._dynamo', 'sympy'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def quantized() -> nn.Module:
    net = compose(tiny_net(), ModeOptions("repq_bn"), QuantOptions(weight_bits=4, act_bits=4))
    calibrate(net, torch.randn(4, 3, 12, 11), "min_error")
    return net.train()


def step_with(net: nn.Module, x: torch.Tensor) -> None:
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    training_step(net, (x, torch.zeros(len(x), dtype=torch.long)), Classification(), optimizer, 0.1, None)


@pytest.mark.parametrize("every", [20, pytest.param(1, marks=pytest.mark.slow)])
def test_a_loss_that_is_not_finite_names_the_layer(every: int) -> None:
    """Whichever number of the network is not; and no update is made with it."""
    x = torch.randn(4, 3, 12, 11)
    for fresh in (quantized(), tiny_net().train()):
        names = [name for name, _ in fresh.named_parameters()]
        chosen = {*names[::every], *(name for name in names if name.startswith("taps.3"))}
        for name in sorted(chosen) if every > 1 else names:
            net = copy.deepcopy(fresh)
            with torch.no_grad():
                broken = net.get_parameter(name)
                broken.view(-1)[-1] = torch.nan
            before = {key: value.clone() for key, value in net.named_parameters()}
            with pytest.raises(CheckError, match="The loss became") as caught:
                step_with(net, x)
            said = re.search(r": the (step|\S+) of layer '(\S+)' is not finite", str(caught.value))
            assert said is not None and name.startswith(f"{said[2]}."), (name, str(caught.value))
            assert said[1] == "step" or name == f"{said[2]}.{said[1]}", name
            now = dict(net.named_parameters())
            assert all(torch.equal(before[key], now[key]) for key in before if key != name)


def test_an_overflow_names_the_layer_whose_output_it_is() -> None:
    net, x = tiny_net().train(), torch.randn(4, 3, 12, 11)
    with torch.no_grad():
        net.classifier.weight.fill_(3e38)
    with pytest.raises(CheckError, match="the output of layer 'classifier' is the first"):
        step_with(net, x)


def test_data_that_is_not_finite_is_the_datas_fault() -> None:
    x = torch.randn(4, 3, 12, 11)
    x[2, 1] = torch.nan
    with pytest.raises(DataError, match="images of a training batch hold NaN"):
        step_with(tiny_net().train(), x)
    with pytest.raises(DataError, match="images of an evaluation set hold NaN"):
        list(Classification().measurements(tiny_net(), batches_of(x), torch.device("cpu"), 0))


def test_images_whose_squares_overflow_are_the_datas_fault() -> None:
    """Their loss may well be finite, and batch norm's running variance is not."""
    x = torch.randn(4, 3, 12, 11)
    require_usable_images([(x * 1e18, x)], "a split")
    x[2, 1] = 1e30
    with pytest.raises(DataError, match=r"images of a split go up to 1e\+30, and their squares overflow"):
        require_usable_images([(x, x)], "a split")


def test_chance_is_the_most_frequent_class() -> None:
    info = DataInfo("nine to one", (1, 8, 8), ("a", "b"), (0.0,), (1.0,), "none")
    split = Split(InMemory(torch.zeros(100, 1, 8, 8, dtype=torch.uint8)), torch.arange(100) // 90, info)
    assert chance(split, 2) == pytest.approx((90, 6))
    assert chance(batches_of(*torch.zeros(25, 1, 3)), 2) == pytest.approx((50, 20))


def batches_of(*images: torch.Tensor) -> Any:
    """A split of a plugin's, which tells no labels."""

    class Batches:
        def __len__(self) -> int:
            return len(images)

        def batches(self, size: int, device: torch.device) -> list[Batch]:
            return [(x, torch.zeros(len(x)).long()) for x in images]

    return Batches()


def test_outputs_that_are_not_finite_score_nothing() -> None:
    """The largest of NaN would be the first class, as good as chance."""
    net = tiny_net()
    with torch.no_grad():
        net.classifier.bias[1] = torch.nan
    split = batches_of(torch.randn(4, 3, 12, 11))
    assert math.isnan(evaluate(net, split, Classification(), torch.device("cpu")))


def test_logging_takes_any_number(tmp_path: Path) -> None:
    """Metrics stay valid JSON, without what JSON cannot say; a histogram has bins for what is finite."""
    log = RunLog(RunFolder(tmp_path), trackers=["tensorboard"], quiet=True)
    log.write({"stage": "qat", "train_loss": 2.0, "val_top1": math.nan, "step_sizes": {"a": math.inf, "b": 1e300}})
    log.write({"stage": "qat", "loss": -math.inf})
    log.trackers.scalars({"a": math.nan, "b": math.inf, "c": 1e300}, 1)
    for values in ([math.nan], [math.inf, -math.inf], [1e38, -1e38], [1e25, 0.0], [1e-45], [math.nan, 1.0], []):
        log.trackers.histograms({"values": torch.tensor(values)}, 1)
    log.trackers.close()
    first, second = (json.loads(line, parse_constant=pytest.fail) for line in log.path.read_text().splitlines())
    assert first == {"stage": "qat", "train_loss": 2.0, "step_sizes": {"b": 1e300}}
    assert second == {"stage": "qat"}
    assert log.last_loss("qat") == 2.0
    assert log.last_loss("fp") is None


def test_totals_of_an_epoch() -> None:
    totals = EpochTotals()
    totals.add(1.0, 50.0)
    totals.add(3.0, 100.0)
    assert (totals.mean_loss, totals.mean_score) == (2.0, 75.0)


def test_identical_pictures_are_no_part_of_a_mean() -> None:
    """Their PSNR is infinite: neither 100 dB, nor does it hide that of the others."""
    task, half = SuperResolution(2, "luma"), torch.full((3, 1, 12, 12), 128.0)
    batches = [(half + error, half) for error in (0.0, torch.tensor([1.0, 0.0, 2.0]).view(3, 1, 1, 1))]
    split = SimpleNamespace(batches=lambda size, device: batches)
    one, two = (10 * math.log10(255**2 / error**2) for error in (1, 2))
    assert evaluate(nn.Identity(), split, task, torch.device("cpu")) == pytest.approx((one + two) / 2)  # type: ignore[arg-type]
    del batches[1]
    assert evaluate(nn.Identity(), split, task, torch.device("cpu")) == math.inf  # type: ignore[arg-type]
    totals = EpochTotals()
    for score in (math.inf, 30.0, 34.0):
        totals.add(1.0, score)
    assert (totals.mean_loss, totals.mean_score) == (1.0, 32.0)
    assert EpochTotals(steps=2, identical=2).mean_score == math.inf


def test_gradient_clipping_bounds_the_update() -> None:
    net = nn.Linear(4, 2)
    before = net.weight.clone()
    batch = (torch.randn(8, 4) * 1e4, torch.zeros(8, dtype=torch.long))
    training_step(net, batch, Classification(), torch.optim.SGD(net.parameters(), 1.0), 1.0, clip_norm=1e-3)
    assert (net.weight - before).norm() <= 1.001e-3


def test_checkpoints_are_whole_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    checkpoint.save(path, {"net": {"w": torch.ones(3)}, "epoch": 2})
    assert checkpoint.load(path)["epoch"] == 2
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError, match=r"a\.pt is damaged"):
        checkpoint.load(path)
    with pytest.raises(DataError, match="There is no checkpoint"):
        checkpoint.load(tmp_path / "b.pt")
    torch.save({"something": "else"}, path)
    with pytest.raises(DataError, match="not one of repq's"):
        checkpoint.load(path)


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DataError, match=r"cannot be written \(No space left on device\)"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_at_once_write_whole_files_and_what_a_killed_one_left_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    names = (".file.00aa11bb22cc.partial", ".file.0123456789ab.partial", ".file.mine.partial")
    abandoned, recent, other = (tmp_path / name for name in names)
    abandoned.write_bytes(b"ha")
    recent.write_bytes(b"of somebody who is at it")
    other.write_bytes(b"not of this project")
    os.utime(abandoned, (0, 0))
    os.utime(other, (0, 0))
    flush = os.fsync

    def meanwhile(descriptor: int) -> None:
        monkeypatch.setattr("os.fsync", flush)
        write_atomically(path, b"theirs")
        assert path.read_bytes() == b"theirs"
        flush(descriptor)

    monkeypatch.setattr("os.fsync", meanwhile)
    write_atomically(path, b"ours")
    assert path.read_bytes() == b"ours"
    assert sorted(tmp_path.iterdir()) == [recent, other, path]


def test_the_first_signal_waits_for_a_safe_point_and_the_second_does_not() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_request() as stop:
        stop.check()
        signal.raise_signal(signal.SIGTERM)
        assert stop
        with pytest.raises(Interrupted) as caught:
            stop.check()
        assert caught.value.exit_code == 143
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_metrics_are_rewound_to_a_checkpoint(tmp_path: Path) -> None:
    log = RunLog(RunFolder(tmp_path), trackers=[], quiet=True)
    log.write({"step": 1})
    offset = log.state()["metrics_bytes"]
    log.write({"step": 2})
    log.rewind(offset, step=1)
    log.write({"step": 3})
    assert log.path.read_text() == '{"step": 1}\n{"step": 3}\n'


def test_tensorboard_gets_scalars_and_histograms(tmp_path: Path) -> None:
    log = RunLog(RunFolder(tmp_path), trackers=["tensorboard"], quiet=True)
    log.trackers.scalars({"fp/loss": 1.5}, 3)
    log.trackers.histograms({"fp/w": torch.randn(10)}, 3)
    log.trackers.close()
    (events,) = (tmp_path / "tb").iterdir()
    assert b"fp/loss" in events.read_bytes()


def test_the_log_goes_to_file_and_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(RunFolder(tmp_path), trackers=[], quiet=True)
    before = logger.level, logger.propagate, list(logger.handlers)
    with logging_to(tmp_path / "train.log", "normal"):
        log.epoch_line("first", last=False)
        log.epoch_line("second, at once", last=False)
        log.epoch_line("last", last=True)
    assert capsys.readouterr().out == "first\nlast\n"
    text = (tmp_path / "train.log").read_text()
    assert all(word in text for word in ("first", "second", "last"))
    assert (logger.level, logger.propagate, logger.handlers) == before
    with logging_to(tmp_path / "train.log", "quiet"):
        logger.info("not shown")
        logger.warning("shown")
    assert capsys.readouterr().out == "shown\n"
    logging.getLogger("repq").info("nobody listens")


def test_devices() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in ("cpu", "cuda", "mps", "xpu")
    with pytest.raises(ConfigError, match=r"runtime\.device=warp is not available here: use runtime\.device=auto or"):
        pick_device("warp")


def group_of(net: nn.Module, options: OptimOptions, name: str) -> tuple[float, float]:
    """Weight decay and learning-rate factor of the parameter whose name ends so."""
    (wanted,) = (parameter for key, parameter in net.named_parameters() if key.endswith(name))
    (group,) = (
        group for group in parameter_groups(net, options) if any(parameter is wanted for parameter in group["params"])
    )
    return group["weight_decay"], group["lr_factor"]


def test_what_else_decays_is_named_by_patterns() -> None:
    net = compose(tiny_net(), ModeOptions("repq_bn"), QuantOptions(weight_bits=4, act_bits=4))
    options = OptimOptions(
        name="sgd", weight_decay=0.1, label_smoothing=0.0, decay_also=["*.identity.norm.weight"], bias_lr=2.0
    )
    assert group_of(net, options, "blocks.3.kernel.block.branches.identity.norm.weight") == (0.1, 1.0)
    assert group_of(net, options, "blocks.3.kernel.block.branches.identity.norm.bias") == (0.0, 2.0)
    assert group_of(net, options, "blocks.3.kernel.block.branches.dense.norm.weight") == (0.0, 1.0)
    everything = OptimOptions(name="sgd", weight_decay=0.1, label_smoothing=0.0, decay_also=["*"])
    assert group_of(net, everything, "classifier.linear.bias") == (0.1, 1.0)
    assert group_of(net, everything, "blocks.3.quantizer.raw_step") == (0.0, 1.0), "steps never decay"
    assert group_of(net, everything, "taps.3.raw_step") == (0.0, 1.0)


def test_biases_may_learn_faster() -> None:
    net = nn.Linear(4, 2)
    optimizer = make_optimizer(
        net,
        OptimOptions(name="sgd", weight_decay=0.0, label_smoothing=0.0, momentum=0.0, nesterov=False, bias_lr=2.0),
        0.1,
    )
    before = [parameter.detach().clone() for parameter in (net.weight, net.bias)]
    batch = (torch.randn(8, 4), torch.zeros(8, dtype=torch.long))
    training_step(net, batch, Classification(), optimizer, 0.5, None)
    for old, new, rate in zip(before, (net.weight, net.bias), (0.5, 1.0), strict=True):
        torch.testing.assert_close(new.detach(), old - rate * new.grad)


@pytest.mark.parametrize("mode", [None, "repq_bn", "merged", "branchwise"])
def test_custom_l2_replaces_the_decay_of_repvggs_kernels(mode: str | None) -> None:
    net = tiny_net()
    if mode is not None:
        net = compose(net, ModeOptions(mode), QuantOptions(weight_bits=4, act_bits=4))
    options = OptimOptions(name="sgd", weight_decay=0.1, label_smoothing=0.0, custom_l2=True)
    groups = parameter_groups(net, options)
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    names = {name for name, parameter in net.named_parameters() if id(parameter) in decayed}
    inside = {name for name in names if "branches" in name}
    assert inside == set(), "the penalty takes the place of their decay"
    assert any("classifier" in name for name in names)
    assert ("blocks.1.kernel.weight" in names) == (mode == "merged"), "merged kernels decay as any others"


def test_the_penalty_is_minimised_but_not_reported() -> None:
    net, batch = tiny_net(), (torch.randn(4, 3, 12, 11), torch.zeros(4, dtype=torch.long))

    def one_step(penalised: bool) -> tuple[float, float]:
        twin = copy.deepcopy(net)

        def penalty() -> torch.Tensor:
            return torch.stack([block.custom_l2() for block in repvgg_blocks(twin)]).sum()

        optimizer = torch.optim.SGD(twin.parameters(), 0.1)
        loss, _ = training_step(twin, batch, Classification(), optimizer, 0.1, None, penalty if penalised else None)
        return loss, twin.blocks[1].branches["dense"].conv.weight.square().sum().item()

    (loss, weight), (same_loss, smaller_weight) = one_step(False), one_step(True)
    assert loss == same_loss
    assert smaller_weight < weight


def test_patterns_that_name_nothing_are_found() -> None:
    patterns = ["*.identity.norm.weight", "foo", "*.scale"]
    assert patterns_without_match(tiny_net(), patterns) == ["foo", "*.scale"]


def test_waiting_for_data_is_told_from_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first batch takes a second, the others none, and each step three."""
    now = [0.0]
    monkeypatch.setattr("repq_cli.train.engine.time.perf_counter", lambda: now[0])

    def passing(seconds: float) -> None:
        now[0] += seconds

    timer, batch = StepTimer(), (torch.zeros(1), torch.zeros(1))
    assert timer.input_share() is None
    for _ in timer.batches((passing(1.0 if first else 0.0), batch)[1] for first in (True, False, False)):
        with timer.step():
            passing(3.0)
    assert timer.input_share() == 0.1 and timer.median_ms() == 3000
    times = {"fp_seconds": 10.0, "fp_step_ms": 3000.0}
    rows = [{"time": times | waits, "lineage": {}} for waits in ({}, {"fp_input_share": 0.04}, {"fp_input_share": 0.1})]
    assert [closing_time(row) for row in rows] == [
        *["FP 10 s (3000 ms a step)"] * 2,
        "FP 10 s (3000 ms a step, 10 % of the time waiting for data)",
    ]
