"""``repq bench bench=train``: what it times, divides, writes and refuses. No test looks at a time."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import tiny_net
from torch import nn

from repq_cli.bench import convolutions, timing, training
from repq_cli.bench.goals import Ratio, goals
from repq_cli.bench.memory import saved_bytes
from repq_cli.bench.peers import LSQ_PARTS, rebuilt
from repq_cli.bench.steps import Choices, Step
from repq_cli.cli import bench_asked, main
from repq_cli.errors import DataError
from repq_cli.modes.calibrate import calibrate
from repq_cli.modes.compose import compose
from repq_cli.modes.options import ModeOptions
from repq_cli.quant.layers import quant_layers
from repq_cli.quant.options import QuantOptions
from repq_cli.quant.quantizer import quantizers
from repq_cli.reparam.plain import plain_block
from repq_cli.tasks.classification import Classification
from repq_cli.train.arithmetic import Arithmetic
from repq_cli.train.options import RuntimeOptions

SMALL = ["bench=train", "width=0.125", "size=8", "batch=4", "rounds=1", "runtime.threads=1", "out=measured"]
ROW_KEYS = {
    "model", "stage", "rep", "mode", "quant", "precision", "compiled", "by", "label", "column", "median_ms", "low_ms",
    "high_ms", "shortest_ms", "ms", "images_per_second", "times_plain_fp",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SHORTEST", 1e-3)
    monkeypatch.setattr(timing, "PAUSE", 0.0)


def test_what_is_timed() -> None:
    """The first precision in full, others Plain and RepQ-BNEst; convolutions once, since no compiler changes them."""
    asked = Choices(["acnet"], ["merged", "repq_bn", "repq_bnest"], ["w4a4"], ["fp32", "bf16"], [False, True], ["lsq"])
    found = asked.steps("net", lambda rep, mode, quant: mode != "merged")
    assert [(step.label, step.column) for step in found] == [
        *((label, "eager") for label in ("FP plain", "FP acnet", "Plain QAT", "textbook LSQ QAT", "RepQ-BN acnet")),
        ("convolutions of RepQ-BN acnet", "eager"),
        ("RepQ-BNEst acnet", "eager"),
        *((label, "compiled") for label in ("FP plain", "FP acnet", "Plain QAT", "textbook LSQ QAT", "RepQ-BN acnet")),
        ("RepQ-BNEst acnet", "compiled"),
        *((label, "bf16 eager") for label in ("FP plain", "Plain QAT", "RepQ-BNEst acnet")),
        *((label, "bf16 compiled") for label in ("FP plain", "Plain QAT", "RepQ-BNEst acnet")),
    ]


def test_ratios_are_those_of_the_times() -> None:
    fp = Step("net", "fp")
    qat = Step("net", "qat", mode="plain", quant="w4a4")
    rep = qat.of(rep="acnet")
    alone = Step("net", "convolutions", rep="acnet")
    seconds = {
        fp: [1.0, 2.0, 4.0],
        fp.of(rep="acnet"): [2.0, 2.0, 4.0],
        fp.of(compiled=True): [0.5, 1.0, 1.0],
        qat: [1.5, 2.0, 8.0],
        qat.of(by="lsq"): [3.0, 4.0, 8.0],
        qat.of(compiled=True, precision="bf16"): [0.5, 1.0, 2.0],
        rep.of(mode="merged"): [3.0, 2.0, 8.0],
        rep.of(mode="repq_bn"): [6.0, 8.0, 16.0],
        rep.of(mode="repq_bnest"): [3.0, 4.0, 4.0],
        rep.of(mode="repq_bn", compiled=True): [3.0, 4.0, 2.0],
        alone: [3.0, 4.0, 4.0],
        Step("other", "fp"): [1.0],
    }
    lines = {goal.name: goal for goal in goals("net", seconds, {fp: 100, qat: 150}, {fp: 200, qat: 100})}
    expected = {
        "FP plain / FP plain fp32 eager": {"eager": Ratio(1.0, 1.0), "compiled": Ratio(0.5, 0.5)},
        "FP acnet / FP plain": {"eager": Ratio(1.0, 2.0)},
        "Plain QAT w4a4 / FP plain": {"eager": Ratio(1.5, 1.5)},
        "textbook LSQ QAT w4a4 / FP plain": {"eager": Ratio(2.0, 3.0)},
        "Plain QAT w4a4 / textbook LSQ": {"eager": Ratio(0.5, 0.5)},
        "Plain QAT w4a4 / FP plain fp32 eager": {"bf16 compiled": Ratio(0.5, 0.5)},
        "Merged acnet w4a4 / Plain QAT": {"eager": Ratio(1.0, 4 / 3)},
        "RepQ-BN acnet w4a4 / Plain QAT": {"eager": Ratio(4.0, 4.0)},
        "RepQ-BNEst acnet w4a4 / Plain QAT": {"eager": Ratio(2.0, 2.0)},
        "RepQ-BNEst acnet w4a4 / RepQ-BN": {"eager": Ratio(0.5, 0.5)},
        "RepQ-BN acnet w4a4 / its convolutions alone": {"eager": Ratio(2.0, 2.0), "compiled": Ratio(1.0, 2 / 3)},
        "Plain QAT w4a4 / FP plain, bytes kept for backward": {"eager": Ratio(1.5, 1.5)},
        "Plain QAT w4a4 / FP plain, bytes at the peak": {"eager": Ratio(0.5, 0.5)},
    }
    assert {name: goal.ratios for name, goal in lines.items()} == expected
    assert lines["Plain QAT w4a4 / FP plain"].at_most == {"eager": 1.25}  # of the columns that there are
    assert lines["RepQ-BN acnet w4a4 / its convolutions alone"].at_most == {"eager": 1.25, "compiled": 1.15}


def test_every_step_runs_and_the_file_holds_all(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Compilation is noted here, not carried out: it would take minutes."""
    compiled: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda what, **options: compiled.append(what) or what)
    monkeypatch.setattr(bench_asked, "require_compiler", lambda device: None)
    arguments = ["reps=repvgg", "modes=[repq_bn,repq_bnest]", "compiled=[false,true]", "format=markdown"]
    assert main(["bench", *SMALL, *arguments]) == 0
    shown, found = capsys.readouterr().out, json.loads(Path("measured/bench.json").read_text())
    rows = found["rows"]
    assert len(compiled) == sum(row["compiled"] for row in rows) == 9
    asked = Choices(["repvgg"], ["repq_bn", "repq_bnest"], ["w4a4"], ["fp32", "bf16"], [False, True], ["lsq"])
    steps = asked.steps("stack", lambda *names: True)
    assert [(row["label"], row["column"]) for row in rows] == [(step.label, step.column) for step in steps]
    for row, step in zip(rows, steps, strict=True):
        more = {"times_plain_qat"} if step.stage == "qat" else set()
        assert row.keys() == ROW_KEYS | more | ({"saved_bytes"} if step.stage != "convolutions" else set())
        assert row["median_ms"] == row["shortest_ms"] == row["ms"][0] > 0
        assert row["images_per_second"] == pytest.approx(4e3 / row["median_ms"])
        assert f"| {row['label']} " in shown
    assert {"format", "bench", "started", "machine", "threads", "device", "rounds", "clock", "width", "classes"} | {
        "batch", "size", "rows", "goals", "notes",
    } == found.keys()  # fmt: skip
    assert found["bench"] == "train" and found["batch"] == 4 and found["threads"] == 1
    names = {goal["name"] for goal in found["goals"]}
    assert {"RepQ-BNEst repvgg w4a4 / RepQ-BN", "Plain QAT w4a4 / textbook LSQ"} <= names
    assert "it is not that project's code" in shown and "| repvgg | w4a4" in shown


def test_what_does_not_go_together_is_left_out_and_said(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A network that enlarges pictures, of blocks without batch norm; several quantizers, one of them no LSQ."""
    arguments = ["models=ecbsr_m4c8", "reps=ecb", "modes=[repq,repq_bn]", "quants=[w8a8,int8_affine]", "against=[]"]
    small = [argument for argument in SMALL if not argument.startswith("width")]
    assert main(["bench", *small, *arguments, "compiled=false", "precisions=fp32", "format=json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(Path("measured/bench.json").read_text())
    kinds = [(row["label"], row.get("quant")) for row in found["rows"]]
    assert kinds == [
        ("FP plain", ""), ("FP ecb", ""), ("Plain QAT", "w8a8"), ("RepQ ecb", "w8a8"), ("Plain QAT", "int8_affine"),
        ("RepQ ecb", "int8_affine"),
    ]  # fmt: skip
    left_out = [note for note in found["notes"] if "left out" in note]
    assert (
        len(left_out) == 2
        and "mode repq_bn with rep ecb and quant w8a8 is left out: it needs batch norm" in left_out[0]
    )


def test_textbook_lsq_is_ours_in_plain_operations() -> None:
    """Outputs and all gradients, of steps too: what is timed against each other computes the same, but for biases."""
    plain, x = tiny_net(plain_block).double(), torch.randn(4, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        for norm in (part for part in plain.modules() if isinstance(part, nn.BatchNorm2d)):
            norm.weight.abs_()  # ours gives the sign to the weights, whose lowest code has no opposite
    ours = compose(plain, ModeOptions("plain"), QuantOptions(weight_bits=4, act_bits=4, int32_bias=False))
    calibrate(ours, x, "min_error", plain)
    theirs = rebuilt(plain, ours, LSQ_PARTS).train()
    outputs = [net(x) for net in (ours.train(), theirs)]
    torch.testing.assert_close(outputs[1], outputs[0])
    for output in outputs:
        output.square().sum().backward()
    for name, quantizer in quantizers(ours).items():
        step = theirs.get_submodule(name).step_size
        torch.testing.assert_close(step.grad, quantizer.raw_step.grad)
    for name, layer in quant_layers(ours).items():
        (weight,) = layer.latent_weights()
        torch.testing.assert_close(theirs.get_submodule(name).weight.grad, weight.grad)


def test_bytes_kept_are_those_of_autograd_once_without_parameters() -> None:
    net, x = nn.Linear(8, 4), torch.randn(16, 8, requires_grad=True)

    def call() -> None:
        (net(x) * net(x.view(16, 8))).sum().backward()

    # x once, though two products keep it; both outputs, which the product keeps; not the weight.
    assert saved_bytes(call, net) == 4 * (16 * 8 + 2 * 16 * 4)


def test_convolutions_alone_are_those_of_repq_bn(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a RepVGG block two with statistics of their own (the identity needs none), and the merged one."""
    net, shapes = tiny_net(), list[tuple[int, ...]]()
    run = convolutions.convolutions_alone(net, torch.randn(2, 3, 8, 8), torch.float32)
    convolve: Callable[..., torch.Tensor] = convolutions.convolve

    def noted(x: torch.Tensor, weight: torch.Tensor, geometry: object) -> torch.Tensor:
        shapes.append((*weight.shape[2:], weight.requires_grad, x.requires_grad))
        return convolve(x, weight, geometry)

    monkeypatch.setattr(convolutions, "convolve", noted)
    run()
    first = [(3, 3, True, False), (1, 1, True, False), (3, 3, True, False)]  # images want no gradient
    assert shapes == first + [(*shape[:3], True) for shape in first] * 5


def test_a_step_is_the_projects_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its optimiser: parameters move."""
    subject = training.Subject(
        make={"none": lambda: training.stack(plain_block, 3, 10, 0.125)},
        batch=(torch.randn(4, 3, 8, 8), torch.arange(4)),
        task=Classification(),
        optim=training.OptimOptions(name="sgd", weight_decay=0, label_smoothing=0),
        quant=lambda name: QuantOptions(),
        mode=lambda name, quant: ModeOptions(name),
        arithmetic=lambda precision: Arithmetic(RuntimeOptions()),
    )
    trained = training.Trained(Step("stack", "fp"), subject)
    before = [parameter.clone() for parameter in trained.net.parameters()]
    own, calls = training.Update.seen, list[nn.Module]()
    monkeypatch.setattr(training.Update, "seen", lambda update, *batch: calls.append(update.net) or own(update, *batch))
    trained.run()
    assert calls == [trained.net]
    assert any((old != new).any() for old, new in zip(before, trained.net.parameters(), strict=True))


def test_what_cannot_be_timed_is_refused_and_nothing_written(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:

    def no_compiler(device: torch.device) -> None:
        raise DataError("runtime.compile=true, and torch.compile does not work here: use runtime.compile=false.")

    monkeypatch.setattr(bench_asked, "require_compiler", no_compiler)
    monkeypatch.setitem(sys.modules, "brevitas", None)
    monkeypatch.delitem(sys.modules, "repq_cli.bench.brevitas_parts", raising=False)
    for arguments, code, message in [
        (["models=repvgg_a1"], 2, "models=repvgg_a1 must be one of stack, .*did you mean 'repvgg_a0'"),
        (["reps=[none]"], 2, "reps=none is Plain, which is always timed"),
        (["modes=ptq", "quants=w4b4"], 2, r"(?s)2 problems.*modes=ptq trains nothing.*quants=w4b4 must be one of"),
        (["precisions=[]"], 2, r"precisions=\[\] leaves nothing to time"),
        (["precisions=int8"], 2, "precisions=int8 must be one of fp32, bf16, fp16"),
        (["precisions=fp16", "runtime.device=cpu"], 2, "runtime.precision=fp16 needs a CUDA GPU"),
        (["runtime.precision=bf16"], 2, "runtime.precision=bf16 is one of several here: use precisions="),
        (["compiled=maybe"], 2, "compiled=maybe must be true or false"),
        (["batch=[1,32]"], 2, r"batch=\[1, 32\] has to be one number"),
        (["runs=run"], 2, "bench=train has no use for runs"),
        ([], 3, "repq: compiled=true, and torch.compile does not work here: use compiled=false"),
        (["quants=bnn", "compiled=false"], 2, "quant.act_method=sign"),
        (["quants=int8_affine", "compiled=false"], 2, "quants=int8_affine is not LSQ at 2 to 8 bits"),
        (["models=ecbsr", "width=0.5", "compiled=false"], 2, "width=0.5 does not go with models=ecbsr"),
        (["threads=1", "runtime.threads=2"], 2, "threads=1 is not runtime.threads=2"),
        (["runtime.device=nowhere"], 2, "runtime.device=nowhere is not available"),
        (["against=brevitas"], 3, "which cannot be imported .*: pip install brevitas"),
        (["out=file/below", "compiled=false"], 3, "cannot be made"),
    ]:
        Path("file").write_text("")
        assert main(["bench", "bench=train", *arguments]) == code
        assert re.search(message, capsys.readouterr().err)
    for arguments, message in [
        (["reps=acnet"], "bench=infer has no use for reps"),
        (["bench=xnor", "runtime.threads=2"], "bench=xnor has no use for runtime.threads"),
    ]:
        assert main(["bench", *arguments]) == 2
        assert re.search(message, capsys.readouterr().err)
    assert not Path("outputs").exists()


def test_a_peer_that_fails_is_left_out_and_said(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object) -> nn.Module:
        raise RuntimeError("unsupported\nat some length")

    monkeypatch.setattr(training, "rebuilt", fail)
    assert main(["bench", *SMALL, "reps=[]", "compiled=false", "precisions=fp32"]) == 0
    shown = capsys.readouterr().out
    assert "textbook LSQ QAT w4a4, eager, fails and is left out: unsupported\n" in shown
    labels = [row["label"] for row in json.loads(Path("measured/bench.json").read_text())["rows"]]
    assert labels == ["FP plain", "Plain QAT"]
    monkeypatch.setattr(training, "compose", fail)
    assert main(["bench", *SMALL, "reps=[]", "compiled=false", "precisions=fp32"]) == 1  # ours is no peer


@pytest.mark.accelerator
def test_on_a_gpu_the_peak_stands_beside_what_is_kept(in_folder: Path) -> None:
    arguments = ["reps=repvgg", "modes=repq_bnest", "compiled=false", "precisions=[fp32,bf16]", "runtime.device=cuda"]
    larger = ["width=1", "size=32", "batch=32"]  # beside which images and weights, held before a step, are nothing
    assert main(["bench", *SMALL, *larger, *arguments]) == 0
    found = json.loads(Path("measured/bench.json").read_text())
    assert all(row["peak_bytes"] > row["saved_bytes"] > 0 for row in found["rows"])
    assert "Plain QAT w4a4 / FP plain, bytes at the peak" in {goal["name"] for goal in found["goals"]}
