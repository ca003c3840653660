"""Under torch's compiler: the same quantizers in operations that it sees through, and whole networks in one graph."""

from __future__ import annotations

import copy
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, results, row_of
from test_resume import StopAfter
from test_runner import losses
from torch import nn

import repq_cli as repq
from repq_cli.cli import main
from repq_cli.errors import DataError
from repq_cli.models.tap import Tap
from repq_cli.quant.lsq import LSQ, LSQPlus
from repq_cli.quant.quantizer import Quantizer
from repq_cli.reparam.acnet import acnet_block
from repq_cli.reparam.algebra import Geometry
from repq_cli.reparam.block import MakeBlock
from repq_cli.reparam.orepa import orepa_block
from repq_cli.reparam.plain import plain_block
from repq_cli.reparam.repvgg import repvgg_block
from repq_cli.train import compiled

Run = Callable[..., tuple[int, Path | None]]

BINARY: dict[str, Any] = {"weight_bits": 1, "act_bits": 1, "act_method": "sign"}
QUANTIZERS: dict[str, dict[str, Any]] = {
    "lsq": {"weight_bits": 4, "act_bits": 4},
    "lsqplus": {"weight_bits": 4, "act_bits": 4, "act_method": "lsqplus"},
    "lsq, 1 bit": {"weight_bits": 1, "act_bits": 4},
    "affine": {"weight_method": "affine", "act_method": "affine"},
    "affine, delayed": {"weight_method": "affine", "act_method": "affine", "act_delay": 1},
    "twn": {"weight_method": "twn", "weight_bits": 2},
    "xnor": {**BINARY, "weight_method": "bwn", "input_scale": True},
    "bnn": {**BINARY, "weight_method": "sign", "pad_value": 1, "stochastic": True},
}


class Chain(nn.Module):
    """Blocks with a tap before each; two are the least that have every kind of layer's neighbour."""

    def __init__(self, make_block: MakeBlock, activation: nn.Module, blocks: int) -> None:
        super().__init__()
        geometries = (Geometry(3, 4), Geometry(4, 4, stride=2))[:blocks]
        signed = [index == 0 or isinstance(activation, nn.Hardtanh) for index in range(blocks)]
        self.blocks = nn.ModuleList(make_block(geometry, activation) for geometry in geometries)
        self.taps = nn.ModuleList(map(Tap, signed))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for tap, block in zip(self.taps, self.blocks, strict=True):
            x = block(tap(x), x)
        return x

    def edges(self) -> frozenset[str]:
        return frozenset()


def prepared(
    mode: str | None, make_block: MakeBlock = repvgg_block, quantizer: str = "lsq", blocks: int = 2
) -> nn.Module:
    """In float64, calibrated, in training mode; no mode is the FP net."""
    quant = repq.QuantOptions(**QUANTIZERS[quantizer])
    net = Chain(make_block, nn.Hardtanh() if quant.act_method == "sign" else nn.ReLU(), blocks).double()
    if mode is None:
        return net.train()
    bits = {"weight_bits": quant.weight_bits, "act_bits": quant.act_bits}
    return repq.prepare(net, images(), mode=mode, batches=[images()], quant=quant, **bits).train()


def images(seed: int = 0) -> torch.Tensor:
    return torch.randn(8, 3, 12, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def step(net: Any, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Outputs and gradients, with the draws of one seed."""
    module = net.net if isinstance(net, compiled.CompiledForward) else net
    module.zero_grad()
    torch.manual_seed(0)
    outputs = net(x)
    outputs.square().sum().backward()
    return outputs.detach(), {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_every_quantizer_in_plain_operations_equals_its_own_backward(
    layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests
) -> None:
    """Values bit for bit, at ties and on both ends of the range too, gradients up to the order of sums."""
    from test_quantizers import EVERY

    more = {"lsq 4": lambda: LSQ(4, False), "lsq 8": lambda: LSQ(8, True, 4), "lsqplus 4": lambda: LSQPlus(4)}
    for name, make in {**EVERY, **more}.items():
        for shift in (-4.0, 0.0, 4.0):  # an offset that has to stay within the codes
            with subtests.test(name=name, shift=str(shift)):
                quantizer = make().double()
                ordinary = torch.randn(4, 3, 5, 6, dtype=torch.float64) + shift
                quantizer.calibrate(ordinary)
                ordinary[0, 0] = ordinary[0, 0].div(0.125).round() * 0.125
                ordinary[0, 1, 0] = 0
                if isinstance(quantizer, LSQ):
                    ends = torch.tensor([*quantizer.codes, quantizer.codes.high + 0.5], dtype=torch.float64)
                    ordinary[1, 0, 0, :3] = quantizer.grid(ordinary).step.flatten()[0] * ends
                values = ordinary.contiguous(memory_format=layout).requires_grad_()
                direction = torch.randn_like(values)
                results = []
                for compiling in (False, True):
                    monkeypatch.setattr(torch.compiler, "is_compiling", lambda compiling=compiling: compiling)
                    state = copy.deepcopy(quantizer)
                    own = [p for p in state.parameters() if p.requires_grad]
                    y = state.train()(values)
                    results.append((y.detach(), torch.autograd.grad(y, [values, *own], direction)))
                (eager, eager_grads), (plain, plain_grads) = results
                assert torch.equal(eager, plain)
                torch.testing.assert_close(eager_grads, plain_grads, rtol=1e-11, atol=1e-11)


Cases = list[tuple[str | None, MakeBlock, str]]
CASES: Cases = [
    *((None, block, "lsq") for block in (plain_block, repvgg_block, orepa_block)),  # FP
    *(("plain", plain_block, quantizer) for quantizer in QUANTIZERS),
    *((mode, repvgg_block, "lsq") for mode in ("merged", "repq", "repq_bn", "repq_bnest", "ptq", "branchwise")),
    *((mode, block, "lsq") for mode in ("repq_bn", "repq_bnest") for block in (acnet_block, orepa_block)),
]
# Every mode, quantizer and block once, and a layer behind another once: tracing takes half a second for each.
FEW_CASES: Cases = [
    (None, repvgg_block, "lsq"),
    *(("plain", plain_block, quantizer) for quantizer in ("lsqplus", "affine, delayed", "xnor", "bnn")),
    ("merged", repvgg_block, "lsq, 1 bit"),
    ("repq", plain_block, "twn"),
    ("repq_bn", orepa_block, "lsq"),
    ("repq_bnest", acnet_block, "lsq"),
    ("ptq", plain_block, "affine"),
    ("branchwise", repvgg_block, "lsq"),
]


@pytest.mark.parametrize("cases", [FEW_CASES, pytest.param(CASES, marks=pytest.mark.slow)], ids=["few", "many"])
def test_training_compiles_to_one_graph_that_stays_and_that_quantizes(
    cases: Cases, monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests
) -> None:
    """No graph break, no second compilation; outputs, running statistics and gradients are those without a compiler.

    A compiler that has folded quantization away would give other outputs, follow no edit of a step and give it no
    gradient.
    """
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    for mode, make_block, quantizer in cases:
        with subtests.test(mode=str(mode), block=make_block.__name__, quantizer=quantizer):
            net = prepared(mode, make_block, quantizer, 2 if cases is CASES or mode == "repq_bnest" else 1)
            reference = copy.deepcopy(net)
            forward = compiled.CompiledForward(net, "qat")
            with torch._dynamo.config.patch(error_on_recompile=True):
                for turn in range(2):
                    outputs, grads = step(forward, images(turn))
                    expected, wanted = step(reference, images(turn))
                    torch.testing.assert_close(outputs, expected, rtol=1e-9, atol=1e-9)
                    assert grads.keys() == wanted.keys()
                    largest = max(grad.abs().max().item() for grad in wanted.values())
                    for name, grad in grads.items():
                        torch.testing.assert_close(grad, wanted[name], rtol=1e-6, atol=1e-9 * largest, msg=name)
                    with torch.no_grad():
                        for each in (net, reference):
                            for part in each.modules():
                                if isinstance(part, LSQ):
                                    part.raw_step.mul_(1.2)
            torch.testing.assert_close(dict(net.named_buffers()), dict(reference.named_buffers()))
            steps = [name for name in grads if name.endswith("raw_step") and grads[name].any()]
            learned = {name for name, part in net.named_modules() if isinstance(part, LSQ) and not frozen(part)}
            assert {name.removesuffix(".raw_step") for name in steps} == learned
            assert torch.equal(net.eval()(images()), reference.eval()(images()))


def frozen(quantizer: Quantizer) -> bool:
    return not any(parameter.requires_grad for parameter in quantizer.parameters())


def test_a_compiled_run_ships_what_it_trained_and_goes_on_exactly_where_it_was_stopped(
    run_repq: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a backend that traces as the real one and generates no code; QAT alone, of one block a stage."""
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    eager = ["train", *TINY, "rep=none", "mode=plain", "quant=w4a4", "runtime.log_every=2"]
    _, finished = run_repq(*eager)
    assert finished is not None
    arguments = [*eager, f"fp.checkpoint={finished}", "runtime.compile=true", "verbosity=normal"]
    code, unbroken = run_repq(*arguments)
    assert code == 0
    assert unbroken is not None
    assert re.search(r"QAT: its training step was compiled in \d+ s, once\.", capsys.readouterr().out)
    assert row_of(unbroken)["checks"]["freeze_max_lsb"] == 0
    # As golden losses: sums have another order.
    assert losses(unbroken, "qat")[:3] == pytest.approx(losses(finished, "qat")[:3], rel=2e-2)
    with monkeypatch.context() as patch:
        patch.setattr("repq_cli.train.interrupt.StopRequest", StopAfter)
        StopAfter.left = 7
        code, stopped = run_repq(*arguments)
    assert code == 130
    assert stopped is not None
    assert main(["train", f"resume={stopped}"]) == 0
    assert results(stopped) == results(unbroken)
    assert (stopped / "metrics.jsonl").read_text() == (unbroken / "metrics.jsonl").read_text()


def test_what_cannot_be_compiled_is_refused_with_the_fix(
    run_repq: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A machine without a compiler before a run has a folder; a network whose forward asks for values at its start."""

    def without_compiler(*arguments: Any) -> Any:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(compiled, "BACKEND", without_compiler)
    compiled.require_compiler.cache_clear()
    code, folder = run_repq("train", *TINY, "runtime.compile=true")
    assert (code, folder) == (3, None)
    said = capsys.readouterr().err
    assert (
        "runtime.compile=true, and torch.compile does not work here (RuntimeError: No working C++ compiler found)"
        in said
    )
    assert "use runtime.compile=false." in said

    class Asks(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if x.sum() > 0 else x

    monkeypatch.setattr(compiled, "BACKEND", "eager")
    with pytest.raises(DataError, match=r"the forward pass of Asks cannot be compiled \(.+\): use runtime\.compile=f"):
        compiled.CompiledForward(Asks(), "fp")(torch.ones(3))


def test_generated_code_quantizes_as_the_layers_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real backend, once: outputs, gradients and running statistics, in training; eval mode stays as it is."""
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("there is no C++ compiler here")
    net = prepared("plain", plain_block, blocks=1)
    reference = copy.deepcopy(net)
    forward = compiled.CompiledForward(net, "qat")
    for turn in range(2):
        (outputs, grads), (expected, wanted) = step(forward, images(turn)), step(reference, images(turn))
        torch.testing.assert_close(outputs, expected, rtol=1e-9, atol=1e-9)
        for name, grad in grads.items():
            torch.testing.assert_close(grad, wanted[name], rtol=1e-6, atol=1e-9, msg=name)
    assert any(name.endswith("raw_step") and grad.any() for name, grad in grads.items())
    torch.testing.assert_close(dict(net.named_buffers()), dict(reference.named_buffers()))
    assert torch.equal(net.eval()(images()), reference.load_state_dict(net.state_dict()) and reference.eval()(images()))
