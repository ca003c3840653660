"""Whole runs: every mode leaves the folder of the contract, and the seed decides everything."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
import yaml
from conftest import LOGGED, QUICK, TINY, results, row_of

from repq_cli import build
from repq_cli.cli import main
from repq_cli.data.base import Batch, Split
from repq_cli.deploy.network import DeployedNet
from repq_cli.reparam.repvgg import RepVGGBlock
from repq_cli.runs.folder import RunFolder
from repq_cli.train import stage
from repq_cli.train.engine import Update

Run = Callable[..., tuple[int, Path | None]]


MODES = ["plain", "merged", "repq", "repq_bn", "repq_bnest"]


@pytest.mark.no_cover  # tracing would cost more than it tells
@pytest.mark.parametrize("mode", [*MODES, "merged mode.merged_bn=reinsert", "plain mode.plain_bn=folded"])
def test_every_mode_runs_to_the_end(mode: str, logged: Path, run_repq: Run) -> None:
    started = [] if mode.startswith("plain") else [f"fp.checkpoint={logged}"]  # Plain's FP net has no branches
    code, folder = run_repq("train", *QUICK, "quant=w4a4", *f"mode={mode}".split(), *started)
    assert code == 0
    row = row_of(folder)
    assert row["status"] == "done"
    assert row["mode"] == mode.split()[0]
    assert row["rep"] == "repvgg"
    assert row["metric"]["deployed"] == row["metric"]["qat"]
    assert row["checks"]["freeze_max_abs"] == 0
    assert row["checks"]["freeze_max_lsb"] == 0
    assert row["checks"]["freeze_top1_agreement"] == 100
    assert row["checks"]["merge_max_abs"] < 1e-3
    assert row["quant"] == {
        "weight_method": "lsq",
        "act_method": "lsq",
        "weight_bits": 4,
        "act_bits": 4,
        "granularity": "channel",
        "first_last": 8,
        "residual": "int",
        "init": "lsq",
    }


def test_ptq_calibrates_and_trains_nothing(run_repq: Run) -> None:
    code, folder = run_repq("train", *QUICK, "quant=w8a8", "mode=ptq", "qat.epochs=5")
    assert code == 0
    row = row_of(folder)
    assert "qat_seconds" not in row["time"]
    assert row["metric"]["deployed"] == row["metric"]["qat"]
    assert row["checks"]["freeze_max_abs"] == 0
    assert folder is not None
    assert not any(json.loads(line)["stage"] == "qat" for line in (folder / "metrics.jsonl").read_text().splitlines())


def test_branchwise_reports_the_bits_that_merging_needs(
    logged: Path, run_repq: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    branchwise = ["mode=branchwise", f"fp.checkpoint={logged}", "verbosity=normal"]
    code, folder = run_repq("train", *QUICK, "quant=w4a4", *branchwise)
    assert code == 0
    row = row_of(folder)
    assert row["checks"]["freeze_max_abs"] == 0
    layers = row["branchwise"]["layers"]
    assert set(layers) == {f"blocks.{index}" for index in range(5)}
    assert row["branchwise"]["table_bits"] == max(layer["table_bits"] for layer in layers.values())
    assert "uniform_bits" not in row["branchwise"], "steps of three branches have no common multiple"
    assert folder is not None
    assert (
        "and 5 of 5 lie on no integer grid of 24 bits. They are quantized to w4a4 again."
        in (folder / "train.log").read_text()
    )
    needed, text = row["branchwise"]["table_bits"], capsys.readouterr().out
    assert f"{needed} bits with a look-up table, more than 24 as integers" in text
    assert "deployed = requantized" in text
    assert "branchwise" not in row_of(logged)


def eighth(tensor: torch.Tensor) -> torch.Tensor:
    """A published tensor as it would be in a net of an eighth of the width: 64 channels and more become 8 and more."""
    for dim, size in enumerate(tensor.shape):
        tensor = tensor.narrow(dim, 0, size // 8 if size >= 64 else size)
    return tensor.clone()


@pytest.mark.no_cover  # tracing would cost more than it tells
def test_qat_starts_from_published_weights(run_repq: Run, in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=10)
    reference.conv1 = torch.nn.Conv2d(1, 64, 7, 2, 3, bias=False)  # the digits are grey
    published = {key: eighth(tensor) for key, tensor in reference.state_dict().items()}
    torch.save(published, in_folder / "resnet18.pth")
    small = ["model.blocks=[1,1,1,1]", "model.width=0.125"]
    resnet = ["+model=resnet18", *small, "fp.checkpoint=resnet18.pth", "mode=ptq", *QUICK[5:]]
    code, folder = run_repq("train", *resnet)
    assert code == 0
    assert folder is not None
    kept = torch.load(folder / "checkpoints/fp.pt", weights_only=True)
    assert torch.equal(kept["net"]["classifier.weight"], published["fc.weight"])
    assert row_of(folder)["lineage"]["fp_run"] == "resnet18.pth"
    cases = {
        (
            "fp.format=acnet_official",
            "rep=acnet",
        ): "look like fp.format=torchvision (model=resnet18 or mobilenet_v2, rep=none;",
        ("rep=repvgg",): "any model=torchvision, rep=own, and this run's net is another: choose that net",
        ("fp.format=repq",): "does not fit this run's net as fp.format=repq: 62 missing: stem.branches",
    }
    for arguments, sentence in cases.items():
        capsys.readouterr()
        assert run_repq("train", *resnet, *arguments)[0] == 3
        assert sentence in capsys.readouterr().err


@pytest.mark.no_cover  # tracing would cost more than it tells
def test_qat_starts_from_a_body_for_other_images(run_repq: Run, in_folder: Path) -> None:
    """Weights for colours and 1000 classes, averaged, on ten classes of grey digits; and once more without a file."""
    reference = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=1000)
    plain = {key: eighth(tensor) for key, tensor in reference.state_dict().items()}
    averaged = {key: value if key.endswith("tracked") else value + 0.01 for key, value in plain.items()}
    torch.save({"state_dict": plain, "state_dict_ema": averaged}, in_folder / "w.pth")
    resnet = ["+model=resnet18", "model.blocks=[1,1,1,1]", "model.width=0.125", *QUICK[3:], "quant=w4a4"]
    code, folder = run_repq("train", *resnet, "fp.checkpoint=w.pth", "fp.head=new", "fp.input=sum")
    assert code == 0 and folder is not None
    kept = torch.load(folder / "checkpoints/fp.pt", weights_only=True)["net"]
    torch.testing.assert_close(kept["stem.branches.conv.conv.weight"], averaged["conv1.weight"].sum(1, keepdim=True))
    assert torch.equal(kept["stages.3.0.conv2.branches.conv.norm.weight"], averaged["layer4.0.bn2.weight"])
    assert kept["classifier.weight"].shape == (10, 64)
    log = (folder / "train.log").read_text()
    assert "FP weights from w.pth: averaged (EMA) weights at 'state_dict_ema', layout torchvision" in log
    assert "left: 'state_dict'; left out beside them: fc" in log
    (in_folder / "w.pth").unlink()
    assert run_repq("train", f"resume={folder}")[0] == 0
    torch.save({"net": kept}, in_folder / "own.pth")
    code, second = run_repq("train", *resnet, "fp.checkpoint=own.pth", "fp.head=new")
    assert code == 0 and second is not None
    fresh = torch.load(second / "checkpoints/fp.pt", weights_only=True)["net"]
    assert all(torch.equal(kept[key], fresh[key]) for key in kept)  # the new head, too, is the seed's


@pytest.mark.no_cover  # tracing would cost more than it tells
def test_a_merged_file_gets_batch_norms_with_the_datas_statistics(logged: Path, run_repq: Run, in_folder: Path) -> None:
    config = build.stored(RunFolder(logged), [])
    net = build.network_maker(config, build.data_inputs(config))()
    net.load_state_dict(torch.load(logged / "checkpoints/fp.pt", weights_only=True)["net"])
    merged = {f"linear.{key}": value for key, value in net.classifier.state_dict().items()}
    for name, block in zip(net.stage_names(), net.blocks, strict=True):
        merged |= {f"{name}.rbr_reparam.{key}": value for key, value in block.to_conv().state_dict().items()}
    torch.save(merged, in_folder / "deploy.pth")
    code, folder = run_repq("train", *QUICK, "rep=none", "quant=w4a4", "fp.checkpoint=deploy.pth")
    assert code == 0 and folder is not None
    assert row_of(folder)["metric"]["fp"] == row_of(logged)["metric"]["fp"]
    kept = torch.load(folder / "checkpoints/fp.pt", weights_only=True)["net"]
    assert kept["blocks.1.branches.conv.norm.running_mean"].abs().min() > 0
    for arguments in (["rep=none", "rep.batch_norm=false"], ["mode=plain"]):
        code, folder = run_repq("train", *QUICK, "quant=w4a4", "qat.epochs=0", "fp.checkpoint=deploy.pth", *arguments)
        assert code == 0 and row_of(folder)["metric"]["fp"] == row_of(logged)["metric"]["fp"]


@pytest.mark.no_cover  # tracing would cost more than it tells
def test_custom_l2_warns_and_changes_training(run_repq: Run, capsys: pytest.CaptureFixture[str]) -> None:
    weights = []
    for value in ("false", "true"):
        _, folder = run_repq("train", *QUICK, "mode=ptq", f"optim.custom_l2={value}", "optim.weight_decay=0.05")
        assert folder is not None
        weights.append((folder / "deploy/model.safetensors").read_bytes())
        assert ("hard to quantize" in capsys.readouterr().out) == (value == "true")
    assert weights[0] != weights[1]


@pytest.mark.no_cover  # tracing would cost more than it tells
@pytest.mark.parametrize(("wrong", "code"), [(False, 0), (True, 4)])
def test_merging_is_judged_in_float64_where_float32_rounds_too_much(
    wrong: bool, code: int, run_repq: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tolerance below float32's rounding stands for a net that magnifies it; a merge that is wrong stays wrong."""
    monkeypatch.setattr("repq_cli.train.pipeline.MERGE_TOLERANCE", 1e-9)
    if wrong:
        merged = RepVGGBlock.to_conv

        def off_by_a_little(block: RepVGGBlock) -> torch.nn.Conv2d:
            conv = merged(block)
            torch.nn.init.constant_(conv.bias, 0.1)
            return conv

        monkeypatch.setattr(RepVGGBlock, "to_conv", off_by_a_little)
    assert run_repq("train", *QUICK, "mode=ptq")[0] == code
    captured = capsys.readouterr()
    assert ("magnifies rounding" in captured.out) == (not wrong)
    assert ("a branch's merge is wrong" in captured.err) == wrong


def test_a_run_leaves_the_folder_of_the_contract(finished: Path) -> None:
    folder = finished
    assert folder.name.endswith("-repvgg_a0-repq_bnest-w4a4")
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    events = {name for name in names if name.startswith("tb/")}
    assert len(events) == 1
    assert names - events == {
        ".lock",
        "config.yaml",
        "data.json.gz",
        "summary.json",
        "env.json",
        "metrics.jsonl",
        "train.log",
        "weights.json",
        "checkpoints/last.pt",
        "checkpoints/previous.pt",
        "checkpoints/best.pt",
        "checkpoints/fp.pt",
        "deploy/model.json",
        "deploy/model.safetensors",
    }
    row = row_of(folder)
    assert set(row) == {
        *("status", "model", "rep", "mode", "data", "task", "seed", "command_line", "quant", "metric", "metrics"),
        *("checks", "size", "cost", "time", "lineage"),
    }
    assert row["size"]["bytes_packed"] == sum(path.stat().st_size for path in (folder / "deploy").iterdir())
    of_stages = {f"{stage}_{what}" for stage in ("fp", "qat") for what in ("seconds", "step_ms", "input_share")}
    assert set(row["time"]) == {*of_stages, "peak_memory_bytes"}
    assert {entry["engine"] for entry in row["metrics"]} == {"fp", "fake", "deployed"}
    assert {"fp_cache", "torch_version", "started", "finished"} <= set(row["lineage"])
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {entry["stage"] for entry in entries} == {"fp", "qat"}
    assert all("val_top1" in entry or "lr" in entry for entry in entries)
    ends = [entry for entry in entries if "val_top1" in entry]
    assert all(("step_sizes" in entry) == (entry["stage"] == "qat") for entry in ends)
    net_at_end = torch.load(folder / "checkpoints/last.pt", weights_only=True)["net"]
    for name, step in ends[-1]["step_sizes"].items():
        assert step == pytest.approx(net_at_end[f"{name}.raw_step"].abs().log().mean().exp().item(), rel=1e-6)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["mode"]["name"] == "repq_bnest"
    assert "packages" in json.loads((folder / "env.json").read_text())
    deployed = (folder / "deploy/model.json").read_text() + str(
        (folder / "deploy/model.safetensors").read_bytes()[:4000]
    )
    assert folder.name not in deployed
    net = DeployedNet.load(folder / "deploy")
    assert net(torch.zeros(2, 1, 32, 32)).shape == (2, 10)


@pytest.mark.no_cover  # tracing would cost more than it tells
def test_the_same_seed_gives_the_same_results_and_bytes(logged: Path, run_repq: Run) -> None:
    first = logged
    _, second = run_repq("train", *QUICK, "quant=w4a4")
    _, other = run_repq("train", *QUICK, "quant=w4a4", "seed=4")
    assert second is not None and first != second
    assert results(first) == results(second)
    name = "deploy/model.safetensors"
    assert (first / name).read_bytes() == (second / name).read_bytes()
    assert other is not None
    assert (first / name).read_bytes() != (other / name).read_bytes()


@pytest.mark.no_cover  # tracing would cost more than it tells
def test_qat_is_the_same_whether_fp_was_trained_here_or_loaded(logged: Path, run_repq: Run) -> None:
    trained = logged
    for source in (trained / "checkpoints", trained / "checkpoints/fp.pt"):
        code, loaded = run_repq("train", *QUICK, "quant=w4a4", f"fp.checkpoint={source}")
        assert code == 0
        assert results(loaded) == results(trained)
        assert row_of(loaded)["lineage"]["fp_run"] == str(source)
        assert row_of(loaded)["lineage"]["fp_cache"] == row_of(trained)["lineage"]["fp_cache"]


def losses(folder: Path, stage_name: str) -> list[float]:
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [entry["loss"] for entry in entries if entry["stage"] == stage_name and "loss" in entry]


def test_golden_losses(finished: Path) -> None:
    """A change that should not alter numbers keeps these losses; one that should says so and renews them."""
    golden = json.loads((Path(__file__).parent / "golden_losses.json").read_text())
    got = {name: losses(finished, name)[: len(golden[name])] for name in ("fp", "qat")}
    assert got["fp"][:3] == pytest.approx(golden["fp"][:3], rel=1e-3)
    if torch.__version__.startswith(f"{golden['torch']}."):  # others sum in other orders, and rounding parts them
        # Processors do, too: AVX2 and AVX-512 are 0.4 % apart by the fifth step of FP, 2.1 % in QAT.
        assert got["fp"] == pytest.approx(golden["fp"], rel=1e-2), got
        assert got["qat"] == pytest.approx(golden["qat"], rel=5e-2), got


@pytest.mark.parametrize("looks", ["each step", "rarely"])
def test_a_net_that_stops_being_finite_ends_with_exit_4_and_keeps_its_checkpoint(
    looks: str, run_repq: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an accelerator the loss is looked at where it is logged; its steps since leave the net as it is."""
    monkeypatch.setattr(stage, "is_waited_for", lambda device: looks == "rarely")
    name = "unseen" if looks == "rarely" else "seen"
    real = getattr(Update, name)
    calls = []

    def poisoned(update: Update, *arguments: Any) -> Any:
        calls.append(None)
        if len(calls) == 5:  # the first of QAT
            with torch.no_grad():
                update.net.get_submodule("taps.2").raw_step.fill_(torch.nan)  # type: ignore[operator]
        return real(update, *arguments)

    monkeypatch.setattr(Update, name, poisoned)
    code, folder = run_repq("train", *QUICK, "quant=w4a4", "runtime.log_every=3")
    assert len(calls) == (7 if looks == "rarely" else 5)
    assert code == 4
    assert "the step of layer 'taps.2' is not finite" in capsys.readouterr().err
    row = row_of(folder)
    assert row["status"] == "failed"
    assert "taps.2" in row["error"]
    assert folder is not None
    last = torch.load(folder / "checkpoints/last.pt", weights_only=True)
    assert all(torch.isfinite(tensor).all() for tensor in last["net"].values())


def test_rates_beyond_reason_end_with_exit_4_and_the_key_to_change_or_a_warning(
    run_repq: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of all sizes that the configuration takes, and with TensorBoard's histograms on.

    Adam's steps are of one size, and integer biases end at 32 bits: what it leaves may be finite, and of no use.
    """
    for optim, rate in (("sgd", "1e12"), ("adam", "1e12")):
        arguments = [*QUICK, "runtime.tensorboard=true", "quant=w4a4", f"optim={optim}", f"qat.lr={rate}"]
        code, folder = run_repq("train", *arguments)
        if code == 0 and optim == "adam":
            said = ("The deployed net (10.03 %)", "its training diverged")
            assert any(sentence in row_of(folder)["warnings"][0] for sentence in said)
            capsys.readouterr()
            continue
        assert code == 4
        error = row_of(folder)["error"]
        assert f"instead of {float(rate):g}" in error, error
        assert capsys.readouterr().err.count("\n") == 1


def test_an_epoch_of_outputs_that_are_not_finite_is_never_the_best(
    run_repq: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([math.nan, 30.0, math.nan, 20.0, math.nan, 25.0])
    monkeypatch.setattr(stage, "evaluate", lambda *arguments: next(scores))
    code, folder = run_repq("train", *QUICK, "fp.epochs=3", "qat.epochs=3")
    assert code == 0
    assert folder is not None
    best = {name: torch.load(folder / f"checkpoints/{name}.pt", weights_only=True) for name in ("fp", "best")}
    assert {name: saved["score"] for name, saved in best.items()} == {"fp": 30.0, "best": 25.0}
    monkeypatch.setattr(stage, "evaluate", lambda *arguments: math.nan)
    code, folder = run_repq("train", *QUICK)
    assert code == 4
    assert "After no epoch of FP were all outputs" in row_of(folder)["error"]


def test_bnest_behind_a_short_fp_stage_does_not_diverge(run_repq: Run) -> None:
    """22 layers whose running averages lag after 19 steps: by them the net's loss is 228, by the batch's 2.2."""
    arguments = ["model.width=0.125", "fp.epochs=1", "qat.epochs=1", "quant=w4a4", "mode=repq_bnest", "seed=5"]
    quiet = ["verbosity=quiet", "runtime.log_every=1", "runtime.tensorboard=false"]
    code, folder = run_repq("train", "+model=repvgg_a0", *arguments, *quiet)
    assert code == 0
    assert folder is not None
    assert max(losses(folder, "qat")) < 1.5 * math.log(10)


def test_a_run_that_is_done_but_of_no_use_says_so(run_repq: Run, capsys: pytest.CaptureFixture[str]) -> None:
    code, folder = run_repq("train", *TINY, "fp.epochs=4", "mode=ptq", "quant=w2a2", "data.size=16")
    assert code == 0
    (warning,) = row_of(folder)["warnings"]
    assert "has lost what the FP net" in warning
    assert warning in capsys.readouterr().out
    code, folder = run_repq("train", *QUICK, "optim.clip_norm=1e-30", "mode=ptq")
    assert code == 0
    assert "is of no use, as the FP net" in row_of(folder)["warnings"][-1]


def test_validation_images_that_are_not_finite_end_the_first_epoch(
    run_repq: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Split.batches

    def poisoned(split: Split, *arguments: Any) -> Iterator[Batch]:
        return ((x.index_fill(0, torch.tensor(3), torch.nan), targets) for x, targets in real(split, *arguments))

    monkeypatch.setattr(Split, "batches", poisoned)
    code, folder = run_repq("train", *QUICK, "fp.epochs=9")
    assert code == 3
    assert "images of the validation split hold NaN or infinity" in row_of(folder)["error"]


def test_a_deployed_net_that_differs_is_exit_4(
    run_repq: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = DeployedNet.load.__func__  # type: ignore[attr-defined]

    def damaged(cls: type, folder: Path) -> DeployedNet:
        net = real(cls, folder)
        net.blocks_1__weight.mul_(1.5)
        return net  # type: ignore[no-any-return]

    monkeypatch.setattr(DeployedNet, "load", classmethod(damaged))
    code, folder = run_repq("train", *QUICK, "quant=w4a4")
    assert code == 4
    assert "differs from the trained one" in capsys.readouterr().err
    assert row_of(folder)["status"] == "failed"


@pytest.mark.no_cover  # tracing would cost more than it tells
def test_checkpoints_that_do_not_fit_are_refused(
    finished: Path, run_repq: Run, capsys: pytest.CaptureFixture[str], in_folder: Path
) -> None:
    folder = finished
    cases = {
        (f"fp.checkpoint={folder}", "mode=plain"): r"has rep repvgg and this run rep none",
        (f"fp.checkpoint={folder}", "model=repvgg_b0"): r"has model repvgg_a0 and this run model repvgg_b0",
        (
            f"fp.checkpoint={folder}",
            "model.width=0.25",
        ): "blocks.0.branches.dense.conv.weight (6x1x3x3, not 12x1x3x3)",
        (f"fp.checkpoint={folder}", "data.size=16"): r"has input 1x32x32 and this run input 1x16x16",
        (f"fp.checkpoint={folder}/checkpoints/best.pt",): r"holds a qat net, and QAT starts from an FP net",
        ("fp.checkpoint=nowhere",): r"There is no checkpoint nowhere",
    }
    for arguments, sentence in cases.items():
        kept = [a for a in TINY if not any(a.lstrip("+").startswith(b.split("=")[0] + "=") for b in arguments)]
        code, _ = run_repq("train", *kept, *arguments)
        assert code == 3, arguments
        assert sentence in capsys.readouterr().err
    broken = in_folder / "broken.pt"
    broken.write_bytes((folder / "checkpoints/fp.pt").read_bytes()[:-100])
    assert run_repq("train", *TINY, f"fp.checkpoint={broken}")[0] == 3
    assert "truncated" in capsys.readouterr().err


def test_two_processes_cannot_work_in_one_folder(
    run_repq: Run, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from filelock import FileLock

    (in_folder / "mine").mkdir()
    with FileLock(in_folder / "mine/.lock"):
        assert main(["train", *TINY, "hydra.run.dir=mine"]) == 3
    assert "Another process is working in" in capsys.readouterr().err


def test_a_folder_that_holds_a_run_is_not_used_again(
    finished: Path, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished.rename(in_folder / "mine")
    before = {path: path.read_bytes() for path in (in_folder / "mine").rglob("*") if path.is_file()}
    assert main(["train", *TINY, "hydra.run.dir=mine"]) == 3
    assert "mine holds a run already: go on with it by repq train resume=mine" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in (in_folder / "mine").rglob("*") if path.is_file()}


@pytest.mark.no_cover  # tracing would cost more than it tells
@pytest.mark.parametrize("mode", ["plain", "repq_bnest"])
def test_statistics_stop_after_the_epoch_that_is_asked_for(mode: str, run_repq: Run) -> None:
    code, folder = run_repq("train", *QUICK, f"mode={mode}", "qat.epochs=2", "mode.freeze_bn_after=1")
    assert code == 0
    assert folder is not None
    net = torch.load(folder / "checkpoints/last.pt", weights_only=True)["net"]
    counts = {int(value) for key, value in net.items() if key.endswith("num_batches_tracked")}
    assert counts == {2 * 4}  # 4 steps an epoch: one of FP and one of QAT, whose second counts none


def test_steps_that_are_looked_at_rarely_are_the_same_steps(
    run_repq: Run, logged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And their logs, and where a run goes on that was stopped between two looks."""
    from test_resume import StopAfter

    monkeypatch.setattr(stage, "is_waited_for", lambda device: True)
    monkeypatch.setattr(Update, "seen", None)
    with monkeypatch.context() as patch:
        patch.setattr("repq_cli.train.interrupt.StopRequest", StopAfter)
        StopAfter.left = 7
        code, stopped = run_repq("train", *LOGGED)
    assert code == 130 and stopped is not None
    assert main(["train", f"resume={stopped}"]) == 0
    assert results(stopped) == results(logged)
    assert (stopped / "metrics.jsonl").read_text() == (logged / "metrics.jsonl").read_text()


def test_a_net_that_breaks_in_its_last_step_is_not_saved(
    run_repq: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Update.seen
    calls = []

    def poisoned(update: Update, *arguments: Any) -> tuple[float, float]:
        result = real(update, *arguments)
        calls.append(None)
        if len(calls) == 4:
            with torch.no_grad():
                next(update.net.parameters()).fill_(torch.inf)
        return result

    monkeypatch.setattr(Update, "seen", poisoned)
    code, folder = run_repq("train", *QUICK)
    assert code == 4
    assert "blocks.0.branches.dense.conv.weight is not finite" in capsys.readouterr().err
    assert folder is not None
    assert list((folder / "checkpoints").iterdir()) == []


@pytest.mark.no_cover  # tracing would cost more than it tells
def test_fp32_runs_both_stages_in_float(run_repq: Run) -> None:
    code, folder = run_repq("train", *QUICK, "quant=fp32", "mode=repq_bn")
    assert code == 0
    row = row_of(folder)
    assert "freeze_max_lsb" not in row["checks"]
    assert row["cost"]["bops"] == row["cost"]["macs"] * 32 * 32


@pytest.mark.no_cover  # tracing would cost more than it tells
def test_image_folders_train(run_repq: Run, in_folder: Path) -> None:
    from test_data import write_folder

    root = write_folder(in_folder / "images", ("train", "val", "test"), size=(16, 16))
    data = ["data=image_folder", f"data.root={root}", "data.batch_size=4"]
    code, folder = run_repq("train", *TINY, *data)
    assert code == 0
    assert row_of(folder)["data"] == "image_folder"
    shutil.rmtree(root / "train/cat")
    assert run_repq("train", *TINY, *data)[0] == 3
