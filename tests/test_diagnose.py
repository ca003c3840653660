"""``repq diagnose``: its numbers against numpy's, its settings against networks that are built that way, its advice."""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import random_data, random_pictures, tiny_net

from repq_cli import build
from repq_cli.cli import main
from repq_cli.cli.jobs import compose_plain
from repq_cli.finished_run import FinishedRun
from repq_cli.modes.branchwise import requantize
from repq_cli.modes.calibrate import calibrate
from repq_cli.modes.compose import compose
from repq_cli.modes.options import ModeOptions
from repq_cli.modes.partly_quantized import quantizing_only
from repq_cli.modes.weights import blocks_behind
from repq_cli.quant.affine import AffineActivation
from repq_cli.quant.binary import SignWeight
from repq_cli.quant.layers import quant_layers, quantizers_in_layers
from repq_cli.quant.lsq import LSQ, LSQPlus
from repq_cli.quant.measures import Noise, quantization_noise, range_ratio
from repq_cli.quant.options import QuantOptions
from repq_cli.quant.quantizer import Quantizer, quantizers
from repq_cli.report.advice import advice
from repq_cli.report.diagnosis import by_harm, gain, layer_table, summary
from repq_cli.tasks.classification import Classification
from repq_cli.train.diagnosis import diagnose, some_of
from repq_cli.train.engine import evaluate

CPU = torch.device("cpu")


def with_step(quantizer: LSQ, step: float) -> LSQ:
    torch.nn.init.constant_(quantizer.raw_step, step)
    return quantizer


def decibels(values: np.ndarray[Any, Any], left: np.ndarray[Any, Any]) -> float:
    return float(10 * np.log10((values**2).sum() / ((values - left) ** 2).sum()))


@pytest.mark.parametrize(
    ("quantizer", "step", "low", "high", "zero"),
    [
        (with_step(LSQ(4, True), 0.2), 0.2, -8, 7, 0),
        (with_step(LSQ(3, False), 0.3), 0.3, 0, 7, 0),
        (AffineActivation(4), 3 / 15, 0, 15, 5),
        (with_step(LSQPlus(2), 0.5), 0.5, 0, 3, 0),
    ],
    ids=["signed", "unsigned", "affine", "lsqplus"],
)
def test_noise_and_shares_are_numpys(quantizer: Quantizer, step: float, low: int, high: int, zero: int) -> None:
    if isinstance(quantizer, AffineActivation):
        quantizer.calibrate(torch.tensor([-1.0, 2.0]))
    values = torch.randn(4, 3, 5, 5, dtype=torch.float64).double()
    values.view(-1)[:3] = torch.tensor([0.0, step * high, step * (high + 0.7)])
    found = quantization_noise(values, quantizer.double())
    v = values.numpy()
    unclipped = np.round(v / step) + zero
    codes = np.clip(unclipped, low, high)
    assert found.sqnr == pytest.approx(decibels(v, (codes - zero) * step), rel=1e-6)
    assert found.clipped == ((unclipped < low) | (unclipped > high)).sum() > 0
    assert found.zeros == (codes == zero).sum() > 0
    assert found.total == v.size
    halves = [quantization_noise(half, quantizer) for half in values.split(2)]
    assert halves[0].plus(halves[1])[2:] == found[2:]
    assert halves[0].plus(halves[1]).sqnr == pytest.approx(found.sqnr)


def test_signs_without_a_scale_get_the_best_one() -> None:
    weight = torch.randn(6, 2, 3, 3) * torch.rand(6, 1, 1, 1)
    found = quantization_noise(weight, SignWeight(), per_channel=True)
    w = weight.numpy().astype(float)
    left = np.sign(w) * np.abs(w).mean((1, 2, 3), keepdims=True)
    assert found.sqnr == pytest.approx(decibels(w, left), rel=1e-5)
    assert found.clipped is None and found.zeros == 0


def test_no_noise_is_no_number() -> None:
    assert quantization_noise(torch.arange(4.0), with_step(LSQ(2, False), 1.0)) == Noise(14.0, 0.0, 0, 1, 4)
    assert quantization_noise(torch.arange(4.0), with_step(LSQ(2, False), 1.0)).sqnr is None


@pytest.mark.parametrize("per_channel", [True, False])
def test_range_ratios_are_numpys_and_zeros_do_not_count(per_channel: bool) -> None:
    weight = torch.randn(5, 4, 3, 3)
    weight[:, :, 0] = 0
    weight[3] = 0
    rows = [row[row != 0] for row in weight.numpy().reshape(5 if per_channel else 1, -1)]
    expected = [np.abs(row).max() / np.sqrt((row**2).mean()) for row in rows if row.size]
    found = range_ratio(weight, per_channel)
    assert found is not None
    assert found == pytest.approx((np.median(expected), max(expected)), rel=1e-6)
    assert range_ratio(torch.zeros(2, 3), per_channel) is None


def quantized(mode: ModeOptions, quant: QuantOptions) -> tuple[torch.nn.Module, torch.nn.Module, torch.Tensor]:
    """A calibrated network, the FP one that it was composed of, and images."""
    activation = "hardtanh" if "sign" in (quant.act_method,) else "relu"
    fp = tiny_net().eval() if activation == "relu" else _with_hardtanh()
    x = torch.randn(8, 3, 16, 16)
    net = compose(fp, mode, quant)
    calibrate(net, x, "min_error", fp)
    return net.eval(), fp, x


def _with_hardtanh() -> torch.nn.Module:
    overrides = ["+model=repvgg_a0", "model.width=0.125", "model.blocks=[1,1,1,1]", "quant=bnn"]
    return build.network_maker(compose_plain(overrides), random_data().info)().eval()


QUANTS = {
    "w4a4": QuantOptions(weight_bits=4, act_bits=4),
    "w2a2 lsqplus": QuantOptions(weight_bits=2, act_bits=2, act_method="lsqplus", granularity="tensor"),
    "bnn": QuantOptions("sign", "sign", 1, 1),
    "bwn": QuantOptions("bwn", weight_bits=1, act_bits=32),
    "twn": QuantOptions("twn", weight_bits=2, act_bits=8, first_last="fp"),
    "affine": QuantOptions("affine", "affine", int32_bias=True),
}


@torch.no_grad()
@pytest.mark.parametrize("quant", QUANTS)
def test_afterwards_the_network_is_what_it_was(quant: str) -> None:
    net, _, x = quantized(ModeOptions("repq"), QUANTS[quant])
    before, state = net(x), copy.deepcopy(net.state_dict())
    names = list(net.state_dict())
    with quantizing_only(net, (), x):
        assert quantizers(net) == {} and not torch.equal(net(x), before)
    with pytest.raises(ZeroDivisionError), quantizing_only(net, list(quantizers(net))[:1], x):
        raise ZeroDivisionError
    assert torch.equal(net(x), before) and list(net.state_dict()) == names
    same = [torch.equal(state[name], tensor) for name, tensor in net.state_dict().items()]
    assert all(same)
    with quantizing_only(net, list(quantizers(net)), x):
        assert torch.equal(net(x), before)


@torch.no_grad()
@pytest.mark.parametrize("mode", ["ptq", "merged", "repq", "repq_bn", "repq_bnest"])
def test_nothing_quantized_is_the_float_network(mode: str) -> None:
    net, fp, x = quantized(ModeOptions(mode), QUANTS["w4a4"])  # type: ignore[arg-type]
    expected = fp(x)
    with quantizing_only(net, (), x):
        assert torch.allclose(net(x), expected, atol=1e-4 * expected.abs().max().item())


@torch.no_grad()
@pytest.mark.parametrize("quant", ["bnn", "bwn", "twn"])
def test_added_batch_norms_follow_what_is_not_quantized(quant: str) -> None:
    """Up to the floor under their variance, the network without codes is again the float one on these images."""
    net, fp, x = quantized(ModeOptions("repq"), QUANTS[quant])
    expected = fp(x)
    with quantizing_only(net, (), x):
        without = (net(x) - expected).norm() / expected.norm()
    with quantizing_only(net, list(quantizers(net)), x):
        codes = (net(x) - expected).norm() / expected.norm()
    assert without < 0.01 and codes > 0.03


@torch.no_grad()
@pytest.mark.parametrize("tensors", ["weights", "activations"])
def test_one_kind_alone_is_the_network_composed_that_way(tensors: str) -> None:
    net, fp, x = quantized(ModeOptions("repq"), QUANTS["w4a4"])
    half = {
        "weights": QuantOptions(weight_bits=4, act_bits=32),
        "activations": QuantOptions(weight_bits=32, act_bits=4),
    }
    other = compose(fp, ModeOptions("repq"), half[tensors]).eval()
    other.load_state_dict(net.state_dict(), strict=False)
    of_weights = {name for name, quantizer in quantizers(net).items() if quantizer in quantizers_in_layers(net)}
    kept = of_weights if tensors == "weights" else set(quantizers(net)) - of_weights
    with quantizing_only(net, kept, x):
        assert torch.equal(net(x), other(x))


@pytest.mark.no_cover  # tracing would cost more than it tells
@pytest.mark.parametrize(
    ("mode", "quant"),
    [
        *(("repq", quant) for quant in QUANTS),
        *((mode, "w4a4") for mode in ("merged", "repq_bn", "repq_bnest", "ptq", "branchwise")),
    ],
)
def test_every_mode_and_quantizer_is_diagnosed(mode: str, quant: str) -> None:
    net, fp, _ = quantized(ModeOptions(mode), QUANTS[quant])  # type: ignore[arg-type]
    blocks = blocks_behind(fp if mode in ("ptq", "merged") else net)
    if mode == "branchwise":
        net = requantize(net, "min_error")
    task, images = Classification(), random_data(12, 16).val
    found = diagnose(net, fp, blocks, images, task, CPU)
    assert found["network"]["everything"]["value"] == evaluate(net, images, task, CPU)
    assert found["network"]["fp"] == evaluate(fp, images, task, CPU)
    layers = {layer["name"]: layer for layer in found["layers"]}
    floats = net.edges() if quant == "twn" else frozenset()  # type: ignore[operator]
    assert list(layers) == [name for name in quant_layers(net) if name not in floats]
    for layer in layers.values():
        weights, tensor = layer.get("weights"), layer["input"]
        assert weights["sqnr"] > 0 and 0 <= weights["zero"] < 1 and weights["step"]["min"] > 0
        assert (tensor is None) == (quant == "bwn") and layer["range_ratio"]["merged"]
        assert layer["range_ratio"]["branches"] or layer["name"] == "classifier"
    whole = {**found, **about(mode, quant), "quant": vars(QUANTS[quant])}
    assert len(advice(whole)) == 2
    assert all(len(line) <= 120 for line in f"{layer_table(whole)}\n{summary(whole)}".splitlines())


def about(mode: str, quant: str) -> dict[str, Any]:
    return {
        "model": "tiny",
        "rep": "repvgg",
        "mode": mode,
        "data": {"name": "noise", "images": 12},
        "metric": {"name": "top1", "unit": "%", "higher_is_better": True},
    }


def test_images_are_spread_over_a_sorted_split_and_mixed() -> None:
    """A first batch, of which added batch norms take their statistics, is then a sample of all classes."""

    def classes(count: int) -> list[int]:
        return [int(target) for _, targets in some_of(random_data(20).val, count).batches(4) for target in targets]

    assert sorted(classes(6)) == [0, 0, 3, 3, 6, 6] and classes(6) == classes(6) != sorted(classes(6))
    assert sorted(classes(50)) == sorted([*range(10), *range(10)])
    pictures = random_pictures().val
    assert sorted(pair.name for pair in some_of(pictures, 2).pairs) == ["0.png", "1.png"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("mode", "method", "said"),
    [
        ("repq", "sign", "quant.weight_method=sign are not meant to be used as they are"),
        ("branchwise", "lsq", "try mode=auto"),
    ],
)
def test_what_a_method_loses_by_design_is_no_fault_of_training(mode: str, method: str, said: str) -> None:
    found = diagnosis(90.0, 10.0, 10.0, 10.0, 60.0)
    found["mode"], found["quant"]["weight_method"] = mode, method
    first, _ = advice(found)
    assert said in first and "quant.weight_bits" not in first and "qarepvgg" not in first


def diagnosis(fp: float, nothing: float, weights: float, activations: float, everything: float) -> dict[str, Any]:
    """One of 1000 images and two layers, of which the second hurts."""

    def setting(value: float) -> dict[str, float]:
        return {"value": value, "drop": nothing - value, "output_sqnr": value / 5}

    def layer(name: str, drop: float) -> dict[str, Any]:
        numbers = {"bits": 4, "signed": False, "sqnr": 18.0, "clipped": 0.01, "zero": 0.1}
        ratios = {"merged": {"typical": 3.0, "largest": 4.0}, "branches": {"a": {"typical": 3.0, "largest": 3.5}}}
        alone = {"value": 0.0, "drop": drop, "output_sqnr": 20 - drop}
        spared = {"value": everything, "drop": nothing - everything, "output_sqnr": 20.0}
        return {
            "name": name,
            "edge": False,
            "range_ratio": ratios,
            "weights": numbers,
            "input": numbers,
            "alone": alone,
            "spared": spared,
        }

    network = {"fp": fp, "nothing": nothing}
    whole = {"weights": weights, "activations": activations, "everything": everything}
    return about("repq_bn", "w4a4") | {
        "quant": {
            "weight_bits": 4,
            "act_bits": 4,
            "granularity": "channel",
            "weight_method": "lsq",
            "act_method": "lsq",
        },
        "data": {"name": "noise", "images": 1000},
        "network": network | {key: setting(value) for key, value in whole.items()},
        "layers": [layer("first", 0.1), layer("second", nothing - everything)],
    }


def changed(found: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Changes of the diagnosis itself, or, by ``second__KEY``, of its second layer."""
    for key, value in changes.items():
        target = found["layers"][1] if key.startswith("second__") else found
        name = key.removeprefix("second__")
        target[name] = target[name] | value if isinstance(value, dict) else value
    return found


HURT = (90.0, 90.0, 89.0, 81.0, 80.0)  # activations
HURT_WEIGHTS = (90.0, 90.0, 81.0, 89.0, 80.0)
RUGGED = {"merged": {"typical": 3.0, "largest": 9.0}}


@pytest.mark.parametrize(
    ("found", "first", "second"),
    [
        (diagnosis(90, 90, 90, 90, 90), "Nothing hurts", "18.0 dB, where 4 bit"),
        (diagnosis(90, 90, 90, 90, 90), "try quant.weight_bits=2 quant.act_bits=2", "10 % of its codes"),
        (diagnosis(*HURT), "activations more than weights", "second alone costs 10.00 points"),
        (diagnosis(*HURT), "try quant.act_bits=8.", "have to help this layer first"),
        (changed(diagnosis(*HURT), second__input={"signed": True}), "or quant.act_method=lsqplus", "second"),
        (diagnosis(*HURT_WEIGHTS), "try quant.weight_bits=8 or more qat.epochs.", "second"),
        (
            changed(diagnosis(*HURT_WEIGHTS), second__range_ratio=RUGGED),
            "rep.identity=split or more qat.epochs",
            "second",
        ),
        (
            changed(diagnosis(*HURT_WEIGHTS), second__range_ratio=RUGGED, mode="merged"),
            "mode=auto, which keeps the branches in QAT, or rep.identity=split, since the merged kernel of second",
            "second",
        ),
        (changed(diagnosis(*HURT_WEIGHTS), quant={"granularity": "tensor"}), "quant.granularity=channel", "second"),
        (changed(diagnosis(*HURT_WEIGHTS), second__weights={"zero": 0.7}), "70 % of the codes of second", "second"),
        (changed(diagnosis(*HURT), mode="ptq"), "try QAT, mode=auto", "second"),
        (changed(diagnosis(*HURT), second__edge=True), "act_bits=8", "quant.first_last=8 keeps at 8 bit"),
        (changed(diagnosis(*HURT), second__alone={"drop": 2.0}), "act_bits=8", "No layer explains it alone (second"),
        (diagnosis(90, 50, 50, 50, 50), "It is not the codes", "18.0 dB"),
        (diagnosis(90, 50, 60, 60, 70), "QAT has fitted the weights to their codes", "18.0 dB"),
        (
            changed(diagnosis(90, 50, 60, 60, 70), second__spared={"drop": -28.0}),
            "try a lower qat.lr",
            "With second alone left float it gains 8.00 points: more bits belong there.",
        ),
        (
            changed(diagnosis(90, 90, 90, 90, 90), second__weights={"sqnr": 5.0, "clipped": 0.0, "bits": 8}),
            "Nothing hurts",
            "those of second: 5.0 dB, where 8 bit can give normally distributed ones 40 dB; next to none is clipped",
        ),
    ],
)
def test_the_advice_follows_from_the_numbers(found: dict[str, Any], first: str, second: str) -> None:
    sentences = advice(found)
    assert first in sentences[0] and second in sentences[1]
    assert all(sentence.endswith(".") for sentence in sentences)


def test_what_chance_explains_does_not_count_as_harm() -> None:
    found = diagnosis(90, 90, 90, 90, 89.9)
    found["layers"][0]["alone"] |= {"drop": -3.0, "output_sqnr": 5.0}
    assert [layer["name"] for layer in by_harm(found)] == ["first", "second"]
    assert [layer["name"] for layer in by_harm(diagnosis(*HURT))] == ["second", "first"]


def test_where_a_network_needs_its_codes_the_layer_that_is_better_float_comes_first() -> None:
    found = diagnosis(90, 50, 60, 60, 70)
    found["layers"][0]["alone"] |= {"drop": 30.0}
    changed(found, second__spared={"drop": -28.0})
    assert gain(found, found["layers"][1]) == pytest.approx(8.0)
    assert [layer["name"] for layer in by_harm(found)] == ["second", "first"]
    changed(found, second__spared={"drop": -20.0}, second__weights={"sqnr": 19.0})
    assert [layer["name"] for layer in by_harm(found)] == ["first", "second"]


def test_a_finished_run(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", f"run={finished}", "threads=1", "images=64"]) == 0
    shown = capsys.readouterr().out
    assert "64 of 179 images of the validation split; the test split is not used" in shown
    assert all(len(line) <= 120 for line in shown.splitlines() if str(finished) not in line)
    found = json.loads((finished / "diagnose/diagnosis.json").read_text())
    assert found["format"] == 1 and found["data"] == {"name": "digits", "split": "val", "images": 64, "of": 179}
    run = FinishedRun(finished)
    data = build.data(run.config)
    net = run.trained(data.info)["fake"]
    value = evaluate(net, some_of(data.val, 64), Classification(), CPU)
    assert found["network"]["everything"]["value"] == value
    assert len(found["advice"]) == 2 and all(sentence in " ".join(shown.split()) for sentence in found["advice"])
    files = {path.name: path.read_bytes() for path in (finished / "diagnose").iterdir()}
    assert set(files) == {"diagnosis.json", "layers.png", "layers.svg"} and files["layers.png"].startswith(b"\x89PNG")
    assert all(layer["name"].encode() in files["diagnosis.json"] for layer in found["layers"])
    assert main(["diagnose", f"run={finished}", "threads=1", "images=64", "out=again"]) == 0
    assert {path.name: path.read_bytes() for path in Path("again").iterdir()} == files


def test_a_run_of_super_resolution(
    run_repq: Callable[..., tuple[int, Path | None]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(build, "data", lambda config: random_pictures())
    small = [
        "+model=ecbsr",
        "model.blocks=1",
        "model.channels=4",
        "data.patch=8",
        "data.patches=16",
        "data.batch_size=8",
    ]
    rest = ["fp.epochs=1", "fp.reuse=false", "qat.epochs=1", "verbosity=quiet", "quant=w2a2", "quant.output=int8"]
    code, folder = run_repq("train", *small, *rest, "runtime.threads=1", "runtime.tensorboard=false")
    assert code == 0 and main(["diagnose", f"run={folder}"]) == 0
    shown = capsys.readouterr().out
    assert "exact" in shown  # pixels are codes already
    assert folder is not None
    found = json.loads((folder / "diagnose/diagnosis.json").read_text())
    assert found["metric"]["name"] == "psnr_y" and [t["tensor"] for t in found["other_tensors"]] == ["output_tap"]


def test_without_matplotlib_there_is_a_note_instead_of_the_figure(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["diagnose", f"run={finished}", "images=8"]) == 0
    assert re.search(r"No figure: This needs matplotlib: .*pip install 'repq\[plot\]'\.", capsys.readouterr().out)
    assert [path.name for path in (finished / "diagnose").iterdir()] == ["diagnosis.json"]


def test_what_cannot_be_diagnosed_says_why(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", "run=nowhere"]) == 3
    assert main(["diagnose"]) == 2
    assert main(["diagnose", f"run={finished}", "image=3"]) == 2
    assert "did you mean 'images'?" in capsys.readouterr().err
    assert main(["diagnose", f"run={finished}", "images=0"]) == 2
    (finished / "taken").write_text("a file")
    assert main(["diagnose", f"run={finished}", f"out={finished}/taken"]) == 3
    config = (finished / "config.yaml").read_text()
    (finished / "config.yaml").write_text(
        config.replace("_bits: 4", "_bits: 32").replace("within: 1.75", "within: null")
    )
    assert main(["diagnose", f"run={finished}"]) == 2
    assert "is of quant=fp32, where nothing is quantized" in capsys.readouterr().err
    (finished / "config.yaml").write_text(config)
    (finished / "checkpoints/best.pt").unlink()
    assert main(["diagnose", f"run={finished}"]) == 3
    row = json.loads((finished / "summary.json").read_text())
    (finished / "summary.json").write_text(json.dumps(row | {"status": "interrupted"}))
    assert main(["diagnose", f"run={finished}"]) == 3
    assert "is not done" in capsys.readouterr().err


def test_a_net_that_knows_nothing_is_not_said_to_be_fine() -> None:
    unit = {"metric": {"name": "top1", "unit": "%", "higher_is_better": True, "guess": 11.0}}
    first, _ = advice(diagnosis(10.0, 10.0, 10.0, 10.0, 10.0) | unit)
    assert first == (
        "There is nothing that quantization could take away: the FP net has 10.00 %, and a guess has up to 11.00 %: "
        "train the FP stage longer, or with another fp.lr."
    )
    assert advice(diagnosis(90.0, 90.0, 90.0, 90.0, 90.0) | unit)[0].startswith("Nothing hurts")
    assert "guess" not in advice(diagnosis(10.0, 10.0, 10.0, 10.0, 50.0) | unit)[0]


def test_a_task_that_forgives_noise_is_no_reason_for_fewer_bits() -> None:
    """Weights fitted to their codes: better with them than without, and as good as the FP net, but of a few dB."""
    found = changed(diagnosis(99.0, 10.0, 50.0, 10.0, 99.0), second__weights={"sqnr": 3.0}, second__range_ratio=RUGGED)
    found["layers"][0]["weights"] = found["layers"][1]["weights"]
    first, _ = advice(found)
    assert "everything quantized has 99.00 %, the FP net 99.00 %" in first
    assert "the weights of 2 of 2 layers are nearly noise" in first and "rep.identity=split" in first
    assert "Fewer bits" not in first
