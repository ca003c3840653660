"""``repq bench``: what it compares, what it writes, and what it refuses. No test looks at a time."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from conftest import QUICK
from torch import nn

from repq_cli.bench import timing
from repq_cli.bench.inference import Candidate, check_equal
from repq_cli.bench.timing import interleaved
from repq_cli.cli import main
from repq_cli.errors import CheckError

ROUND = ["rounds=1", "batch=[1,2]", "out=measured"]


def measured() -> list[dict[str, object]]:
    return json.loads(Path("measured/bench.json").read_text())["rows"]


@pytest.fixture(autouse=True)
def _short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SHORTEST", 1e-3)
    monkeypatch.setattr(timing, "PAUSE", 0.0)


def test_calls_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that ticks once at every look, with turns of at least one tick."""
    clock = iter(range(10**6))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(timing, "SHORTEST", 1.0)
    monkeypatch.setattr(timing, "PAUSE", 0.0)
    order: list[str] = []
    seconds = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert order == list("aabb" + "aabb" * 3)  # to estimate; then each round one call to wake up and one that counts
    assert seconds == {"a": [1, 1, 1], "b": [1, 1, 1]}


def test_every_network_of_a_run_is_timed(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", f"runs=[{finished}]", *ROUND, "size=8"]) == 0
    shown = capsys.readouterr().out
    rows = measured()
    nets = [("multi-branch", "torch"), ("merged", "torch"), ("merged", "onnxruntime"), ("int8", "onnxruntime")]
    assert [(row["batch"], row["net"], row["engine"]) for row in rows] == [
        (batch, *net) for batch in (1, 2) for net in nets
    ]
    assert len(re.findall(r"^[12] +(multi-branch|merged|int8) +(torch|onnxruntime) ", shown, re.MULTILINE)) == 8
    row = json.loads((finished / "summary.json").read_text())
    for found in rows:
        assert found["input_shape"] == [1, 8, 8] and found["bits"] == [4, 4] and found["run"] == str(finished)
        assert found["low_ms"] == found["median_ms"] == found["high_ms"] > 0  # type: ignore[operator]
        if found["net"] == "int8":  # nothing was exported, and nothing is known of its answers
            assert "value" not in found["metric"]  # type: ignore[operator]
        else:
            assert found["metric"]["value"] == row["metric"]["fp"]  # type: ignore[index]
        assert (found["times_training_graph"] == 1) == (found["net"] == "multi-branch")
        assert (found["times_merged"] == 1) == ((found["net"], found["engine"]) == ("merged", "onnxruntime"))


def test_binary_networks_have_their_kernel(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = [*QUICK, "model.blocks=[1,1,1,1]", "quant=bnn", "hydra.run.dir=run"]
    assert main(["train", *small]) == 0
    assert main(["bench", "runs=run", "batch=1", "rounds=1", "out=measured"]) == 0
    assert [row["net"] for row in measured()] == ["multi-branch", "merged", "merged", "int8", "binary"]
    assert main(["eval", "run=run", "engine=xnor"]) == 0
    values = {row["engine"]: row["value"] for row in json.loads(Path("run/summary.json").read_text())["metrics"]}
    assert values["xnor"] == pytest.approx(values["deployed"], abs=1)
    capsys.readouterr()


@pytest.mark.no_cover  # tracing would cost more than it tells
def test_networks_of_floating_point_have_no_int8(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *QUICK, "mode=plain", "quant=fp32", "hydra.run.dir=run"]) == 0
    assert main(["bench", "runs=run", "batch=1", "rounds=1", "out=measured"]) == 0
    assert [row["net"] for row in measured()] == ["unfolded", "merged", "merged"]
    assert "There is no int8 network: activations are floating-point numbers." in capsys.readouterr().out


def test_networks_that_are_not_equal_are_not_timed() -> None:
    first = nn.Conv2d(1, 1, 1)
    nets = [Candidate(name, "torch", run, True) for name, run in (("a", first), ("b", lambda x: first(x) * 1.01))]
    check_equal(nets[:1], torch.ones(1, 1, 2, 2))
    with pytest.raises(CheckError, match=r"The b net in torch is not the a one: outputs differ by 0\.01"):
        check_equal(nets, torch.ones(1, 1, 2, 2))


def test_what_cannot_be_timed_says_why(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, code, message in [
        ([], 2, "bench=infer wants folders of runs"),
        (["runs=nowhere"], 3, "is no run folder"),
        ([f"runs={finished}", "batch=[]"], 2, "batch=\\[\\] names no number of images"),
        ([f"runs={finished}", "batch=[0]"], 2, "at least 1"),
        ([f"runs={finished}", "batch=[1,1000000000]"], 2, "batch=1,1000000000 of images 1x32x32 takes"),
        ([f"runs={finished}", f"out={finished}/summary.json"], 3, "cannot be made"),
        (["bench=xnor", "size=8"], 2, "bench=xnor has no use for size"),
        ([f"runs=[{finished},nowhere]", "rounds=1"], 3, "is no run folder"),
        (["bench=training"], 2, "must be one of infer, train, xnor"),
    ]:
        assert main(["bench", *arguments]) == code
        assert re.search(message, capsys.readouterr().err)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for name in ("repq_cli.bench.inference", "repq_cli.deploy.onnx_run"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert main(["bench", f"runs={finished}"]) == 3
    assert "pip install 'repq[export]'" in capsys.readouterr().err
    assert not Path("outputs/bench").exists()


def test_the_kernel_is_compared_with_float32(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from repq_cli.bench import kernel

    monkeypatch.setattr(kernel, "MATMUL", 64)
    monkeypatch.setattr(kernel, "LAYERS", ((64, 4),))
    pairs = kernel.pairs([2])
    for first, second in pairs.values():
        assert first().shape == second().shape[-first().dim() :]
    assert main(["bench", "bench=xnor", "rounds=1", "batch=2"]) == 0
    shown = capsys.readouterr().out
    assert "product 64x64x64" in shown and "convolution 3x3 of 2x64x4x4" in shown and "times as fast" in shown
