"""Training steps in 16 bits: what they leave in float32, and that everything after training does not know of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from blocks import BARE, BLOCKS
from conftest import QUICK, TINY, results, row_of, tiny_net
from test_quant_layers import hardtanh_net
from torch import Tensor, nn

from repq_cli.cli import main
from repq_cli.errors import ConfigError
from repq_cli.modes.calibrate import calibrate
from repq_cli.modes.compose import compose
from repq_cli.modes.options import ModeOptions
from repq_cli.precision import full_precision, in_float32
from repq_cli.quant.layers import QuantConv, quant_layers
from repq_cli.quant.options import QuantOptions
from repq_cli.quant.quantizer import quantizers
from repq_cli.reparam.algebra import Geometry
from repq_cli.reparam.statistics import BatchStatistics, EstimatedStatistics, RunningStatistics
from repq_cli.tasks.classification import Classification
from repq_cli.train.arithmetic import Arithmetic
from repq_cli.train.engine import FLOAT32, training_step
from repq_cli.train.options import RuntimeOptions

Run = Callable[..., tuple[int, Path | None]]
MODES = [ModeOptions(name) for name in ("plain", "merged", "repq", "repq_bn", "repq_bnest", "branchwise")]
QUANTS = {
    "w4a4": QuantOptions(weight_bits=4, act_bits=4),
    "w4a4 lsqplus": QuantOptions(weight_bits=4, act_bits=4, act_method="lsqplus", residual="fp"),
    "w1a1": QuantOptions(weight_bits=1, act_bits=1),
    "bnn": QuantOptions(weight_bits=1, act_bits=1, weight_method="sign", act_method="sign", stochastic=True),
    "xnor": QuantOptions(weight_bits=1, act_bits=1, weight_method="bwn", act_method="sign", input_scale=True),
    "twn": QuantOptions(weight_bits=2, act_bits=8, weight_method="twn"),
    "int8_affine": QuantOptions(weight_method="affine", act_method="affine"),
}


def bf16() -> Any:
    return torch.autocast("cpu", torch.bfloat16)


def batch(size: int = 8) -> tuple[Tensor, Tensor]:
    return torch.randn(size, 3, 12, 11), torch.arange(size) % 5


def composed(mode: ModeOptions, quant: QuantOptions) -> nn.Module:
    make_block = BLOCKS["plain" if mode.name == "plain" else "repvgg"]
    signs = quant.act_method == "sign"
    net = hardtanh_net(make_block) if signs else tiny_net(make_block)
    start = mode.rule.starting_net(net, [batch()[0]], mode)
    found = compose(start, mode, quant)
    calibrate(found, batch()[0], quant.init, start)
    return found.train()


def test_merges_and_statistics_are_those_of_float32() -> None:
    """Of every block, with running and with batch statistics, whose input comes rounded; and so does the FP's merge."""
    geometry = Geometry(4, 4)
    x = torch.randn(6, 4, 7, 8).bfloat16()
    for name, make in {**BLOCKS, **{f"{key} bare": make for key, make in BARE.items()}}.items():
        block = make(geometry, None).train()
        sources: list[Callable[[], Any]] = [RunningStatistics]
        if block.has_batch_norm:
            sources += [lambda: BatchStatistics(in_float32(x)), lambda: EstimatedStatistics(in_float32(x))]
        for source in sources:
            expected = block.merged(source())
            with bf16():
                found = block.merged(source())
            for one, other in zip(expected, found, strict=True):
                assert torch.equal(one, other) and other.dtype == torch.float32, name
    with bf16():
        assert torch.is_autocast_enabled("cpu")
        with full_precision():
            assert not torch.is_autocast_enabled("cpu")


def test_a_source_of_kernels_is_given_float32() -> None:
    for mode in MODES[2:5]:
        net, x = composed(mode, QUANTS["w4a4"]), torch.randn(4, 8, 6, 6)
        kernel = next(layer for layer in net.modules() if isinstance(layer, QuantConv)).kernel
        x = torch.randn(4, 3, 6, 6).bfloat16()
        expected = copy.deepcopy(kernel)(x.float(), x.float())
        with bf16():
            found = kernel(x, x)
        assert all(map(torch.equal, expected, found)), mode.name


def test_quantizers_quantize_in_float32_and_give_back_what_they_got() -> None:
    for name, quant in QUANTS.items():
        net = composed(MODES[2], quant).eval()
        for quantizer in quantizers(net).values():
            values = torch.randn(
                net.blocks[0].kernel.inference()[0].shape if quantizer.step() is None else (8, 4, 3, 3)
            )
            if quantizer.step() is not None and quantizer.step().dim():
                values = torch.randn(len(quantizer.step()), 4, 3, 3)
            half = values.bfloat16()
            with bf16():
                found = quantizer(half)
            assert found.dtype == torch.bfloat16, name
            assert torch.equal(found, quantizer(half.float()).bfloat16()), name


def test_a_step_in_bf16_is_one_in_float32_up_to_rounding() -> None:
    """In every mode and with every quantizer; gradients and parameters stay float32."""
    cases = [(mode, "w4a4") for mode in MODES] + [(MODES[3], name) for name in QUANTS]
    for mode, name in cases:
        net = composed(mode, QUANTS[name])
        twin, data = copy.deepcopy(net), batch()
        losses = []
        for each, options in ((net, RuntimeOptions()), (twin, RuntimeOptions(precision="bf16"))):
            optimizer = torch.optim.SGD(each.parameters(), 1e-3)
            torch.manual_seed(0)
            losses.append(
                training_step(each, data, Classification(), optimizer, 1e-3, 1.0, arithmetic=Arithmetic(options))[0]
            )
        assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.2), (mode.name, name, losses)
        assert {tensor.dtype for tensor in twin.state_dict().values() if tensor.is_floating_point()} <= {
            torch.float32,
            torch.float64,
        }


def test_codes_whose_signs_are_taken_are_summed_exactly() -> None:
    """By the float32 sums: an even sum of thousands of signs is rounded by 8 bits, and a bias may turn it then."""
    net = composed(MODES[3], QUANTS["bnn"])
    layer = next(layer for layer in quant_layers(net).values() if layer._feeds_signs and layer._reads)
    assert isinstance(layer, QuantConv)
    x = torch.randn(4, layer.kernel.inference()[0].shape[1], 9, 9).sign()
    x[x == 0] = 1
    weight = layer.kernel.inference()[0].detach()
    inputs, window = layer._padded(x)
    expected = layer.eval()._weighted(inputs, weight, None, window)
    with bf16():
        found = layer._weighted(inputs.bfloat16(), weight, None, window)
    assert found.dtype == torch.float32 and torch.equal(found, expected)


@pytest.mark.parametrize("last", [True, False])
def test_the_layout_of_training_changes_the_order_of_sums_alone(last: bool) -> None:
    arithmetic = Arithmetic(RuntimeOptions(channels_last=last))
    assert Arithmetic(RuntimeOptions()).channels_last is True, "auto: where it has been measured to be faster"
    net = composed(MODES[4], QUANTS["w4a4"])
    twin, data = copy.deepcopy(net), batch()
    arithmetic.lay_out(twin, training=True)
    kernels = [p for p in twin.parameters() if p.dim() == 4 and min(p.shape[1:]) > 1]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) == last for kernel in kernels)
    seen: list[Tensor] = []
    twin.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    expected, found = (
        training_step(each, data, Classification(), torch.optim.SGD(each.parameters(), 0.1), 0.1, None, arithmetic=how)[
            0
        ]
        for each, how in ((net, FLOAT32), (twin, arithmetic))
    )
    assert found == pytest.approx(expected, rel=1e-3)
    assert seen[0].is_contiguous(memory_format=torch.channels_last) == last
    arithmetic.lay_out(twin, training=False)
    assert all(parameter.is_contiguous() for parameter in twin.parameters())


def test_a_scaled_loss_makes_the_same_update_and_is_part_of_a_checkpoint() -> None:
    """The scale is a power of two; steps whose gradients overflow are left out and halve it."""
    net = composed(MODES[3], QUANTS["w4a4"])
    twin, arithmetic, data = copy.deepcopy(net), Arithmetic(RuntimeOptions()), batch()
    arithmetic.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for each, how in ((net, FLOAT32), (twin, arithmetic)):
        optimizer = torch.optim.SGD(each.parameters(), 0.1)
        training_step(each, data, Classification(), optimizer, 0.1, 1.0, arithmetic=how)
    for one, other in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    other = Arithmetic(RuntimeOptions())
    other.scaler = torch.amp.GradScaler("cpu")
    other.restore(arithmetic.state())
    assert other.state() == arithmetic.state() and other.state()["scale"] == 1024.0
    assert FLOAT32.state() == {}
    arithmetic.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    before = {key: value.clone() for key, value in twin.named_parameters()}
    training_step(
        twin, data, Classification(), torch.optim.SGD(twin.parameters(), 0.1), 0.1, None, arithmetic=arithmetic
    )
    assert all(torch.equal(before[key], value) for key, value in twin.named_parameters())
    assert arithmetic.state()["scale"] == 2.0**126


def test_a_run_in_bf16_ships_exactly_and_resumes_exactly(run_repq: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from test_resume import StopAfter

    asked = ["train", *QUICK, "quant=w4a4", "mode=plain", "rep=none", "runtime.precision=bf16"]
    asked += ["runtime.channels_last=true"]
    _, unbroken = run_repq(*asked)
    assert row_of(unbroken)["checks"]["freeze_max_abs"] == 0
    with monkeypatch.context() as patch:
        patch.setattr("repq_cli.train.interrupt.StopRequest", StopAfter)
        StopAfter.left = 7
        code, stopped = run_repq(*asked)
    assert code == 130
    assert main(["train", f"resume={stopped}"]) == 0
    assert results(stopped) == results(unbroken)
    assert (stopped / "deploy/model.safetensors").read_bytes() == (unbroken / "deploy/model.safetensors").read_bytes()
    _, exact = run_repq(*[text for text in asked if "precision" not in text])
    weights, others = ((folder / "deploy/model.safetensors").read_bytes() for folder in (exact, unbroken))
    assert weights != others


def test_what_a_device_cannot_do_is_refused_before_anything_is_written(
    in_folder: Path, capsys: pytest.CaptureFixture[str], finished: Path
) -> None:
    assert main(["train", *TINY, "runtime.precision=fp16"]) == 2
    assert "runtime.precision=fp16 needs a CUDA GPU, and this run is on cpu" in capsys.readouterr().err
    assert main(["train", "-m", *TINY, "runtime.precision=fp16"]) == 2
    assert not (in_folder / "outputs").exists()
    assert main(["train", f"resume={finished}", "runtime.precision=bf16"]) == 2
    assert "runtime.precision=bf16 cannot be changed by resume=" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"runtime\.matmul=high is the TF32 of a CUDA GPU"):
        Arithmetic(RuntimeOptions(matmul="high"))
