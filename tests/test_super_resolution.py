"""Whole runs of super-resolution, ``repq eval`` and ``repq upscale``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_pictures, results, row_of
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from repq_cli import build
from repq_cli.cli import main
from repq_cli.cli.jobs import compose_plain
from repq_cli.data.base import Data
from repq_cli.data.pictures import Pictures, Upscaling, pair_of
from repq_cli.deploy.network import DeployedNet
from repq_cli.images.files import read_rgb
from repq_cli.images.panel import busiest
from repq_cli.images.resize import to_bytes
from repq_cli.tasks.super_resolution import Bicubic, SuperResolution
from repq_cli.train.evaluation import CROP
from repq_cli.train.runner import run

SMALL = [
    "+model=ecbsr",
    "model.blocks=1",
    "model.channels=4",
    "data.patch=16",
    "data.patches=16",
    "data.batch_size=8",
    "fp.epochs=2",
    "fp.reuse=false",
    "qat.epochs=1",
    "verbosity=quiet",
    "runtime.threads=1",
]
ENGINES = ["bicubic", "fp", "fake", "deployed"]
METRICS = ["psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One finished run on random pictures."""
    folder = tmp_path_factory.mktemp("sr") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "data", lambda config: random_pictures())
        config = compose_plain([*SMALL, "runtime.log_every=1"])
        run(build.experiment(config), folder)
    return folder


def test_a_run_measures_everything_and_ships_what_was_trained(trained: Path) -> None:
    row = row_of(trained)
    assert row["status"] == "done" and row["task"] == "super_resolution" and row["mode"] == "repq"
    assert [(m["set"], m["scale"], m["engine"], m["name"]) for m in row["metrics"]] == [
        ("random", 2, engine, metric) for engine in ENGINES for metric in METRICS
    ]
    values = {(m["engine"], m["name"]): m["value"] for m in row["metrics"]}
    assert row["metric"] == {
        "name": "psnr_y",
        "split": "random",
        "higher_is_better": True,
        "fp": values["fp", "psnr_y"],
        "qat": values["fake", "psnr_y"],
        "deployed": values["deployed", "psnr_y"],
    }
    assert values["fake", "psnr_y"] == values["deployed", "psnr_y"]
    assert row["checks"]["freeze_max_abs"] == 0 and row["checks"]["freeze_pixel_agreement"] == 100
    assert row["checks"]["merge_max_abs"] > 0, "merging is compared with the branches, though FP trained merged"
    assert "fp.merged_training: true" not in (trained / "config.yaml").read_text()
    assert "merged_training: true" in (trained / "config.yaml").read_text()


def flat_pictures() -> Data:
    """With a set that has a picture of one colour, and one that has no other; bicubic gives them back exactly."""
    data, upscaling = random_pictures(), Upscaling(2, "luma")
    flat = pair_of("flat.png", torch.full((3, 40, 36), 77, dtype=torch.uint8), upscaling)
    tests = {"mixed": Pictures([data.val.pairs[0], flat], upscaling), "flat": Pictures([flat], upscaling)}  # type: ignore[attr-defined]
    return replace(data, tests=tests)


def test_identical_pictures_are_counted_beside_the_mean(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build, "data", lambda config: flat_pictures())
    monkeypatch.setattr(build, "data_tests", lambda config: flat_pictures().tests)
    run(build.experiment(compose_plain([*SMALL, "verbosity=normal"])), Path("run"))
    (closing,) = (line for line in capsys.readouterr().out.splitlines() if "psnr_y (mixed)" in line)
    row = row_of(Path("run"))
    found = {(m["set"], m["engine"], m["name"]): m for m in row["metrics"]}
    first = Pictures(random_pictures().val.pairs[:1], Upscaling(2, "luma"))  # type: ignore[attr-defined]
    ((expected),) = SuperResolution(2, "luma").measurements(Bicubic(2), first, torch.device("cpu"), 1024)
    for name in ("psnr_y", "psnr_rgb"):
        assert found["mixed", "bicubic", name]["value"] == pytest.approx(expected[name].item())
        assert found["mixed", "bicubic", name]["identical"] == 1
        assert found["flat", "bicubic", name]["identical"] == 1 and "value" not in found["flat", "bicubic", name]
    assert "identical" not in found["mixed", "bicubic", "ssim_y"]
    assert found["flat", "bicubic", "ssim_y"]["value"] == pytest.approx(1)
    assert f"bicubic {expected['psnr_y'].item():.2f} dB + 1 identical   FP" in closing
    assert main(["eval", "run=run"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if "psnr_y, dB" in line]
    assert " ".join(lines[0]).startswith(f"mixed x2 psnr_y, dB {expected['psnr_y'].item():.2f} + 1 identical ")
    assert lines[1][:5] == ["flat", "x2", "psnr_y,", "dB", "identical"]
    assert row_of(Path("run")) == row
    assert main(["table", "run"]) == 0
    assert "psnr_y on flat: 1 identical to the original and no part of the mean, bicubic in run" in (
        capsys.readouterr().out
    )


def test_tensorboard_shows_crops_side_by_side(trained: Path) -> None:
    events = EventAccumulator(str(trained / "tb"), size_guidance={"images": 0}).Reload()
    assert "report/random" in events.Tags()["images"]


def test_a_run_leaves_crops_of_every_set_with_their_quality(trained: Path) -> None:
    folder = trained / "crops/random"
    pictures = {path.stem: read_rgb(path) for path in folder.glob("*.png")}
    assert set(pictures) == {"original", "bicubic", "fp", "deployed"}
    pair = random_pictures().tests["random"].pairs[0]  # type: ignore[attr-defined]
    rows, columns = busiest(pair.high, CROP)
    assert torch.equal(pictures["original"], pair.high[:, rows, columns])
    net, task = DeployedNet.load(trained / "deploy"), SuperResolution(2, "luma")
    assert torch.equal(pictures["deployed"], to_bytes(task.upscale(net, pair.low, 1024)[1])[:, rows, columns])
    measured = {m["engine"]: m["value"] for m in row_of(trained)["metrics"] if m["name"] == "psnr_y"}
    expected = {engine: measured[engine] for engine in ("bicubic", "fp", "deployed")}
    assert json.loads((folder / "values.json").read_text()) == {"scale": 2, "psnr_y": expected}


def test_training_merged_or_branch_by_branch_is_the_same_run(in_folder: Path) -> None:
    """Up to rounding: after a few steps of Adam the nets agree to a hundredth of a decibel."""
    found = []
    for merged in ("true", "false"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(build, "data", lambda config: random_pictures())
            config = compose_plain([*SMALL, f"fp.merged_training={merged}", "runtime.tensorboard=false"])
            found.append(run(build.experiment(config), Path(merged)))
    first, second = (row["metric"]["fp"] for row in found)
    assert first == pytest.approx(second, abs=0.01)
    assert found[0]["lineage"]["fp_cache"] != found[1]["lineage"]["fp_cache"]


@pytest.mark.no_cover  # many cases of lines that other tests cover as well
@pytest.mark.parametrize(
    "arguments",
    [
        ["mode=plain", "quant=int8_affine"],
        ["mode=merged", "quant=w2a2", "model.scale=3"],
        ["mode=ptq", "model.colour=rgb"],
        ["mode=branchwise", "quant=w4a4", "model.scale=4"],
        ["rep=repvgg", "quant.act_method=lsqplus", "quant=w4a4", "psnr_rounding=false"],
        ["rep=acnet", "quant.residual=int", "quant.output=int8"],
        ["rep=dbb", "quant=w2a2", "mode.post_bn=auto"],
        ["rep=none", "optim=sgd", "fp.lr=1e-5", "qat.lr=1e-6"],
        ["rep=repvgg", "rep.batch_norm=true", "mode=repq_bnest"],
        ["mode=merged", "mode.merged_bn=reinsert"],
    ],
    ids=" ".join,
)
def test_every_choice_is_a_whole_run_and_can_be_evaluated_again(
    arguments: list[str], in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = compose_plain([*SMALL, *arguments, "runtime.tensorboard=false"])
    monkeypatch.setattr(build, "data", lambda config: random_pictures(*config.model.enlarging))
    monkeypatch.setattr(build, "data_tests", lambda config: build.data(config).tests)
    row = run(build.experiment(config), Path("run"))
    assert row["checks"]["freeze_max_abs"] == 0
    before = row_of(Path("run"))
    assert main(["eval", "run=run", "runtime.threads=1"]) == 0
    after = row_of(Path("run"))
    if "mode=branchwise" in arguments:  # what was trained is not what ships
        assert before["metric"]["qat"] != before["metric"]["deployed"]
    assert after == before, "the same networks on the same pictures"
    assert "psnr_y, dB" in capsys.readouterr().out


@pytest.mark.no_cover  # tracing would cost more than it tells
def test_photographs_in_a_run_that_is_interrupted_and_resumed(
    run_repq: Callable[..., tuple[int, Path | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = [*SMALL, "runtime.tensorboard=false", "fp.epochs=1"]
    code, whole = run_repq("train", *small)
    assert code == 0
    from repq_cli.train.engine import Update

    steps = iter(range(100))
    step = Update.seen

    def interrupted(*arguments: object) -> object:
        if next(steps) == 3:
            raise RuntimeError("killed")
        return step(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Update, "seen", interrupted)
        code, cut = run_repq("train", *small)
    assert code == 1 and cut is not None
    assert main(["train", f"resume={cut}"]) == 0
    assert results(cut) == results(whole)
    assert row_of(whole)["metrics"][0]["set"] == "astronaut"


def folder_of(pictures: int, name: str) -> str:
    Path(name).mkdir()
    for index in range(pictures):
        pixels = np.random.default_rng(index).integers(0, 256, (40 + index, 33, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"{name}/p{index}.png")
    return name


def test_eval_on_folders_keeps_every_number_once(
    trained: Path, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, "run")  # its row will change
    trained = Path("run")
    sets = f"data.test={{one: {folder_of(1, 'one')}, two: {folder_of(2, 'two')}}}"
    for _ in range(2):
        assert main(["eval", f"run={trained}", "data=sr_folder", sets, "runtime.threads=1"]) == 0
    table = capsys.readouterr().out
    assert [line.split()[:3] for line in table.splitlines() if " x2 " in line][:8] == [
        [name, "x2", metric.rstrip("y") + "y," if metric == "psnr_y" else f"{metric}," if "psnr" in metric else metric]
        for name in ("one", "two")
        for metric in METRICS
    ]
    found = [(m["set"], m["engine"], m["name"]) for m in row_of(trained)["metrics"]]
    assert len(found) == len(set(found)) == 3 * len(ENGINES) * len(METRICS)
    for rule in ("psnr_rounding", "data.low_rounding"):
        other = f"{rule}={'false' if rule == 'psnr_rounding' else 'once'}"
        assert main(["eval", f"run={trained}", "data=sr_folder", sets, other]) == 0
        assert f"Measured with another {rule} than the run's: printed only" in capsys.readouterr().out
    assert len(row_of(trained)["metrics"]) == len(found)


def test_tiles_change_nothing(trained: Path, in_folder: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 130, 3), dtype=np.uint8))
    image.save("x.png")
    assert main(["upscale", f"run={trained}", "in=x.png", "out=whole", "threads=1"]) == 0
    assert main(["upscale", f"run={trained}", "in=x.png", "out=tiled", "threads=1", "tile=64"]) == 0
    difference = read_rgb(Path("whole/x.png")).int() - read_rgb(Path("tiled/x.png")).int()
    assert difference.abs().max() <= 1 and (difference != 0).float().mean() < 1e-3  # sums in another order


@pytest.mark.no_cover  # tracing would cost more than it tells
def test_classification_runs_are_evaluated_too(
    finished: Path, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finished
    before = row_of(folder)
    assert main(["eval", f"run={folder}"]) == 0
    assert row_of(folder) == before
    assert "digits/test" in capsys.readouterr().out
    for size, own_size in ((32, []), (24, []), (24, ["data.size=24"])):  # read in the network's size, or in another
        for split in ("train", "val"):
            for label in range(10):
                (Path(f"mine{size}/{split}/{label}")).mkdir(parents=True, exist_ok=True)
                pixels = np.random.default_rng(label).integers(0, 256, (size, size), dtype=np.uint8)
                Image.fromarray(pixels).save(f"mine{size}/{split}/{label}/a.png")
                Image.fromarray(pixels).save(f"mine{size}/{split}/{label}/b.png")
        mine = ["data=image_folder", f"data.root=mine{size}", "data.grey=true", *own_size]
        assert main(["eval", f"run={folder}", *mine]) == (3 if own_size else 0)
    captured = capsys.readouterr()
    assert "are 1x24x24 and the network was trained on 1x32x32" in captured.err
    assert {m["set"] for m in row_of(folder)["metrics"]} == {"digits/test", "image_folder/test"}
    assert main(["upscale", f"run={folder}", "in=mine32", "out=large"]) == 2
    assert "upscale needs a run of super-resolution" in capsys.readouterr().err


def test_upscale_handles_every_kind_of_image(
    trained: Path, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rgb = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8))
    Path("in/below").mkdir(parents=True)
    rgb.save("in/rgb.png")
    rgb.save("in/below/photo.jpg")
    rgb.convert("L").save("in/grey.png")
    rgb.convert("P").save("in/palette.png")
    faint = rgb.copy()
    faint.putalpha(77)
    faint.save("in/faint.png")
    assert main(["upscale", f"run={trained}", "in=in", "out=out"]) == 0
    assert "5 images x2" in capsys.readouterr().out
    found = {}
    for path in Path("out").rglob("*.png"):
        with Image.open(path) as image:
            found[path.relative_to("out").as_posix()] = image.copy()
    assert {image.size for image in found.values()} == {(14, 18)}
    assert {name: image.mode for name, image in found.items()} == {
        "rgb.png": "RGB",
        "below/photo.png": "RGB",
        "grey.png": "L",
        "palette.png": "RGB",
        "faint.png": "RGBA",
    }
    assert np.array(found["faint.png"])[..., 3].tolist() == [[77] * 14] * 18
    net = DeployedNet.load(trained / "deploy")
    _, expected = SuperResolution(2, "luma").upscale(net, read_rgb(Path("in/rgb.png")), 1024)
    assert torch.equal(read_rgb(Path("out/rgb.png")), to_bytes(expected))


def test_upscale_names_what_it_leaves_out_and_writes_the_rest(
    trained: Path, in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder_of(1, "in")
    Path("in/broken.png").write_bytes(Path("in/p0.png").read_bytes()[:300])
    Image.fromarray(np.zeros((8, 8), np.uint16)).save("in/deep.png")
    Path("in/ten.ppm").write_bytes(b"P6 8 8 1023\n" + bytes(2 * 3 * 64))
    Image.fromarray(np.zeros((6, 72, 3), np.uint8)).save("in/wide.bmp")  # its rows have 216 bytes
    Path("in/.hidden").mkdir()
    Path("in/.hidden/p1.png").write_bytes(Path("in/p0.png").read_bytes())
    assert main(["upscale", f"run={trained}", "in=in", "out=out"]) == 3
    message = capsys.readouterr().err
    assert "3 of 5 images are left out" in message and "ten.ppm has more than 8 bits" in message
    assert "broken.png cannot be decoded" in message and "deep.png has more than 8 bits a channel" in message
    assert sorted(path.name for path in Path("out").iterdir()) == ["p0.png", "wide.png"]
    monkeypatch.setattr("repq_cli.memory.available", lambda: 15 * 4 * 6 * 72 - 1)
    assert main(["upscale", f"run={trained}", "in=in/wide.bmp", "out=more"]) == 3
    assert "in/wide.bmp, enlarged to 144x12, takes 0.0 GB of memory" in capsys.readouterr().err


@pytest.mark.no_cover  # many cases of lines that other tests cover as well
@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["in=in", "out=in"], 3, "out=in would replace in/p0.png, an image to be enlarged"),
        (
            ["in=[in,full/p0.png]", "out=full", "overwrite=true"],
            3,
            "out=full would replace full/p0.png, an image to be",
        ),
        (["in=in", "out=in/large"], 3, "out=in/large lies inside in=in, where it would be enlarged again"),
        (["in=", "out=out"], 2, "one of them is empty"),
        (["in=in", "out="], 2, "one of them is empty"),
        (["in=in", "out=full"], 3, "full/p0.png is there already: name another folder as out=, or set overwrite=true"),
        (["in=[in,also]", "out=out"], 3, "would both become out/p0.png"),
        (["in=nix", "out=out"], 3, "in=nix is neither an image nor a folder"),
        (["in=in"], 2, "out=… has to be set: name what to write"),
        (["in=in", "out=out", "tile=8"], 2, "tile=8 must be a whole number, at least 64."),
        (["in=in", "out=out", "scale=3"], 2, "scale=3 is an unknown key"),
        (["in=in", "out=out", "device=warp"], 2, "repq: device=warp is not available here: use device=auto or cpu."),
    ],
)
def test_upscale_refuses_with_a_sentence(
    arguments: list[str], code: int, sentence: str, trained: Path, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("in", "also", "full"):
        folder_of(1, name)
    before = Path("full/p0.png").read_bytes()
    assert main(["upscale", f"run={trained}", *arguments]) == code
    assert sentence in capsys.readouterr().err
    assert Path("full/p0.png").read_bytes() == before and not Path("out").exists()
    if arguments == ["in=in", "out=full"]:
        assert main(["upscale", f"run={trained}", *arguments, "overwrite=true"]) == 0


@pytest.mark.no_cover  # many cases of lines that other tests cover as well
@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ([], 2, "run=… has to be set: name the folder of a run that is done."),
        (["run=nix"], 3, "run=nix is no run folder"),
        (["run=RUN", "data.test={a: b}"], 2, "Keys of data need data itself"),
        (["run=RUN", "data=sr_folder"], 2, "data.test=null has to be set"),
        (["run=RUN", "data=sr_folder", "data.test={a: nix}"], 3, "nix is no folder"),
        (["run=RUN", "data=sr_folder", "data.test=7"], 2, "data.test=7 must be {NAME: …} with each item text or null"),
        (["run=RUN", "data=digits"], 2, "data=digits is for task=classification"),
        (["run=RUN", "data=pictures"], 2, "data=pictures must be one of"),
        (["run=RUN", "fp.epochs=3"], 2, "fp.epochs=3 is an unknown key"),
        (["run=RUN", "runtime.tile=big"], 2, "runtime.tile=big must be a whole number, at least 64."),
    ],
)
def test_eval_refuses_with_a_sentence(
    arguments: list[str], code: int, sentence: str, trained: Path, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", *(word.replace("RUN", str(trained)) for word in arguments)]) == code
    assert sentence in capsys.readouterr().err


def test_a_run_that_is_not_done_is_not_evaluated(
    trained: Path, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("cut").mkdir()
    Path("cut/summary.json").write_text(json.dumps(row_of(trained) | {"status": "interrupted"}))
    for command in (["eval", "run=cut"], ["upscale", "run=cut", "in=x.png", "out=out"]):
        assert main(command) == 3
        assert (
            "run=cut is not done (status interrupted): go on with it by repq train resume=cut"
            in capsys.readouterr().err
        )


@pytest.mark.no_cover  # many cases of lines that other tests cover as well
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            "+model=resnet18_cifar data=photos",
            "model=resnet18_cifar classifies, and data=photos is for super-resolution",
        ),
        ("+model=ecbsr data=digits", "model=ecbsr enlarges pictures, and data=digits is for classification"),
        ("+model=ecbsr data=digits task=super_resolution", "task=super_resolution is not that of data=digits"),
        ("+model=repvgg_a0 data=photos task=classification", "task=classification is not that of data=photos"),
        ("+model=ecbsr data=sr_folder data.train= data.test={a:b}", "data.train= names no folder"),
        ("+model=ecbsr model.scale=5", "model.scale=5 must be one of 2, 3, 4; the nearest is 4."),
        ("+model=ecbsr rep=orepa", "rep.batch_norm=false must be true"),
        ("+model=ecbsr rep.batch_norm=true", "rep.batch_norm=true must be false"),
        ("+model=ecbsr mode=repq_bn", "mode=repq_bn needs batch norm, which rep=ecb has none of; use mode=repq"),
        ("+model=repvgg_a0 fp.merged_training=true", "fp.merged_training=true needs blocks without batch norm"),
        ("+model=repvgg_a0 quant.output=int8", "quant.output=int8 is for the pixels of super-resolution"),
        ("+model=ecbsr quant.output=int8 quant.act_bits=32", "quant.output=int8 does not go with quant.act_bits=32"),
        ("+model=ecbsr data=sr_folder data.train=x", "data.test=null has to be set"),
        ("+model=ecbsr data.patch=101", "data.patch=101 must be a whole number, from 8 to 100"),
        ("+model=ecbsr data.patches=3", "data.batch_size=16 is more than the data.patches=3 of an epoch"),
    ],
)
def test_what_does_not_go_together_says_why(
    arguments: str, sentence: str, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *arguments.split()]) in (2, 3)
    assert sentence in capsys.readouterr().err


def test_weights_of_another_block_are_not_taken(
    trained: Path, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An identity branch has no weights that would tell."""
    assert main(["train", *SMALL, f"fp.checkpoint={trained}", "rep.identity=true"]) == 3
    assert "has rep.identity false and this run rep.identity true" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "content"), [("summary.json", "[]"), ("summary.json", '{"status": "done"}'), ("deploy/model.json", "[]")]
)
def test_a_damaged_run_is_said_to_be(
    file: str, content: str, trained: Path, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, "run")
    Path("run", file).write_text(content)
    assert main(["eval", "run=run"]) == 3
    assert "Traceback" not in capsys.readouterr().err
