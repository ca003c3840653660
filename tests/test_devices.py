"""Everything that composition makes lives where the network lives, in its dtype; runs on an accelerator are exact.

Tests marked ``accelerator`` want a GPU and are skipped where there is none.
"""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from blocks import BLOCKS
from conftest import TINY, randomise, results, row_of
from torch import nn

from repq_cli.cli import main
from repq_cli.deploy.check import compare
from repq_cli.deploy.freeze import freeze
from repq_cli.deploy.network import DeployedNet
from repq_cli.devices import full_float32, use_device
from repq_cli.models.repvgg import RepVGG
from repq_cli.modes.branchwise import requantize
from repq_cli.modes.calibrate import calibrate
from repq_cli.modes.compose import compose
from repq_cli.modes.options import ModeOptions
from repq_cli.quant.options import QuantOptions
from repq_cli.reparam.plain import plain_block
from repq_cli.tasks.classification import Classification

MODES = [
    ModeOptions("plain"),
    ModeOptions("plain", plain_bn="folded"),
    ModeOptions("merged"),
    ModeOptions("merged", merged_bn="reinsert"),
    ModeOptions("repq"),
    ModeOptions("repq_bn"),
    ModeOptions("repq_bnest"),
    ModeOptions("repq_bnest", estimator="channel"),
    ModeOptions("ptq"),
    ModeOptions("branchwise"),
]
QUANTS = {
    "w8a8": QuantOptions(),
    "one step a layer": QuantOptions(granularity="tensor", int32_bias=True),
    "w4a4 lsqplus": QuantOptions(weight_bits=4, act_bits=4, act_method="lsqplus"),
    "w1a1": QuantOptions(weight_bits=1, act_bits=1),
    "binaryconnect": QuantOptions(weight_bits=1, act_bits=32, weight_method="sign", stochastic=True),
    "bwn": QuantOptions(weight_bits=1, act_bits=32, weight_method="bwn"),
    "twn": QuantOptions(weight_bits=2, act_bits=8, weight_method="twn"),
    "int8_affine": QuantOptions(weight_method="affine", act_method="affine"),
}
accelerator = pytest.mark.accelerator


def tensors(net: nn.Module) -> Iterable[tuple[str, torch.Tensor]]:
    yield from itertools.chain(net.named_parameters(), net.named_buffers())


every_mode = pytest.mark.parametrize(
    "mode", MODES, ids=lambda mode: f"{mode.name} {mode.plain_bn} {mode.merged_bn} {mode.estimator}"
)


def small_net(mode: ModeOptions) -> nn.Module:
    """A block without an identity and one with."""
    make_block = plain_block if mode.name == "plain" else BLOCKS["repvgg"]
    return randomise(RepVGG(make_block, [3, 8, 8], [2, 1], 5, [1, 1]))


@every_mode
@pytest.mark.parametrize("trained", ["some", pytest.param("all", marks=pytest.mark.slow)])
def test_what_composition_makes_lives_where_the_net_lives(trained: str, mode: ModeOptions) -> None:
    """On ``meta``, where any tensor of another device is an error; shapes are those of the CPU.

    A mode trains some of the quantizers there, each in some modes: operations on ``meta`` take their time.
    """
    shaped = {}
    for device in ("cpu", "meta"):
        with torch.device(device):
            net, x = small_net(mode), torch.zeros(4, 3, 12, 11)
        shaped[device] = mode.rule.shaped_net(net, [x], mode)
    start = mode.rule.starting_net(net, [x], mode)  # of the last, on meta
    for number, (name, quant) in enumerate(QUANTS.items(), MODES.index(mode)):
        shapes = {}
        for device, net in shaped.items():
            composed = compose(net, mode, quant)
            shapes[device] = [(key, tensor.shape, tensor.dtype) for key, tensor in tensors(composed)]
            assert {tensor.device.type for _, tensor in tensors(composed)} == {device}, name
        assert shapes["cpu"] == shapes["meta"], name
        if trained == "some" and number % 4:
            continue
        composed = compose(start, mode, quant).train()
        composed(x).sum().backward()
        assert composed.eval()(x).is_meta


@every_mode
def test_a_float64_net_stays_one_and_freezes_exactly(mode: ModeOptions, tmp_path: Path) -> None:
    net, x = small_net(mode).double(), torch.randn(8, 3, 12, 11, dtype=torch.float64)
    start = mode.rule.starting_net(net, [x], mode)
    for index, name in enumerate(("w8a8", "one step a layer", "w4a4 lsqplus", "int8_affine")):
        quant = QUANTS[name]
        composed = compose(start, mode, quant)
        calibrate(composed, x, quant.init, start)
        composed.train()(x).sum().backward()
        kinds = {tensor.dtype for _, tensor in tensors(composed) if tensor.is_floating_point()}
        assert kinds == {torch.float64}, name
        shipped = requantize(composed, quant.init) if mode.name == "branchwise" else composed
        folder = tmp_path / str(index)
        freeze(shipped, {"input_shape": [3, 12, 11]}).save(folder)
        agreement = compare(shipped, DeployedNet.load(folder), [x], Classification().agreement)
        assert agreement.max_abs == 0, name


def test_full_float32_leaves_things_as_they_were() -> None:
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    with full_float32():
        assert matmul.fp32_precision == torch.backends.cudnn.conv.fp32_precision == "ieee"
    assert matmul.fp32_precision == before


GPU_RUN = [*TINY, "quant=w4a4", "runtime.device=cuda", "fp.epochs=2", "qat.epochs=2"]


@accelerator
@pytest.mark.parametrize("mode", ["plain", "merged", "repq", "repq_bn", "repq_bnest", "ptq", "branchwise"])
def test_every_mode_runs_and_ships_exactly_on_a_gpu(mode: str, in_folder: Path) -> None:
    assert main(["train", *GPU_RUN, f"mode={mode}", "hydra.run.dir=run"]) == 0
    row = row_of(Path("run"))
    assert row["checks"]["freeze_max_abs"] == 0
    assert row["checks"]["merge_max_abs"] < 1e-4
    assert main(["eval", "run=run", "runtime.device=cpu", "engine=integer"]) == 0


@accelerator
@pytest.mark.parametrize("key", ["precision=bf16", "precision=fp16", "matmul=high"])
def test_steps_of_lower_precision_ship_exactly_and_resume_exactly_on_a_gpu(key: str, in_folder: Path) -> None:
    arguments = [*GPU_RUN, "mode=repq_bn", f"runtime.{key}", "runtime.channels_last=true"]
    assert main(["train", *arguments, "hydra.run.dir=run"]) == 0
    assert row_of(Path("run"))["checks"]["freeze_max_abs"] == 0
    stop_after_some_steps(arguments, Path("stopped"))
    assert main(["train", "resume=stopped"]) == 0
    assert results(Path("stopped")) == results(Path("run"))
    assert main(["train", *GPU_RUN, "mode=repq_bn", "hydra.run.dir=exact"]) == 0
    assert results(Path("exact")) != results(Path("run"))


@accelerator
def test_the_same_run_twice_and_one_that_was_stopped_agree_on_a_gpu(in_folder: Path) -> None:
    """Also behind checkpoints that hold nothing of CUDA's random numbers: every step seeds them."""
    stochastic = [*GPU_RUN, "quant=bnn", "quant.stochastic=true", "model.activation=hardtanh", "mode=repq_bn"]
    for arguments in (GPU_RUN, stochastic):
        for name in ("first", "second"):
            shutil.rmtree(name, ignore_errors=True)
            assert main(["train", *arguments, f"hydra.run.dir={name}"]) == 0
        assert results(Path("first")) == results(Path("second"))
        shutil.rmtree("stopped", ignore_errors=True)
        stop_after_some_steps(arguments, Path("stopped"))
        assert main(["train", "resume=stopped"]) == 0
        assert results(Path("stopped")) == results(Path("first"))


def stop_after_some_steps(arguments: list[str], folder: Path) -> None:
    """Kill a process of its own in the midst of QAT, right after a checkpoint."""
    code = (
        "import os, sys\n"
        "from repq_cli.cli import main\n"
        "from repq_cli.train import checkpoint\n"
        "save = checkpoint.save_last\n"
        "def save_and_die(folder, content):\n"
        "    save(folder, content)\n"
        "    if content['stage'] == 'qat':\n"
        "        os._exit(9)\n"
        "checkpoint.save_last = save_and_die\n"
        "sys.exit(main(['train', *sys.argv[1:]]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments, f"hydra.run.dir={folder}"], capture_output=True)
    assert done.returncode == 9, done.stderr.decode()


@accelerator
def test_a_run_of_a_gpu_is_exported_and_evaluated(in_folder: Path) -> None:
    pytest.importorskip("onnxruntime")
    assert main(["train", *GPU_RUN, "hydra.run.dir=run"]) == 0
    deployed = json.loads((in_folder / "run" / "summary.json").read_text())["metric"]["deployed"]
    assert main(["eval", "run=run", "engine=deployed"]) == 0
    assert row_of(Path("run"))["metric"]["deployed"] == deployed
    assert main(["export", "run=run"]) == 0


@accelerator
def test_float32_is_not_rounded_to_tf32() -> None:
    device = use_device("cuda")
    x = torch.randn(512, 512, device=device)
    exact = x.double() @ x.double()
    assert ((x @ x).double() - exact).norm() / exact.norm() < 1e-6
