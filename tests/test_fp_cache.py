"""The FP stage is trained once, whoever needs it: one run after the other, two at once, or after the trainer died."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import QUICK, own_logging, results, row_of
from processes import Process, wait_until

from repq_cli import build
from repq_cli.cli import main
from repq_cli.cli.jobs import compose_plain
from repq_cli.files import Taken
from repq_cli.train.checkpoint import save
from repq_cli.train.fp_cache import ROOT, FPCache, stored

Run = Callable[..., tuple[int, Path | None]]

SHARED = [*QUICK, "fp.reuse=true", "qat.epochs=0"]
MODES = {"a": "merged", "b": "repq_bn"}  # of two runs that share a stage, by their folders


def key_of(*overrides: str) -> str:
    return str(build.experiment(compose_plain([*SHARED, *overrides])).fp_key)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one run, which trained and kept its FP stage."""
    folder = tmp_path_factory.mktemp("trained")
    with own_logging(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", *SHARED]) == 0
    return folder


@pytest.fixture
def after_a_run(trained: Path, in_folder: Path) -> Path:
    """The current folder holds that run, whose folder this is."""
    shutil.copytree(trained / "outputs", in_folder / "outputs")
    return next(in_folder.glob("outputs/train/*"))


def log_of(folder: str) -> str:
    path = Path(folder, "train.log")
    return path.read_text() if path.exists() else ""


def trained_fp(folder: str | Path) -> bool:
    return "FP epoch" in Path(folder, "train.log").read_text()


@pytest.mark.no_cover  # tracing would cost more than it tells
def test_modes_and_bits_share_a_stage_and_a_reusing_run_is_as_one_that_trained(run_repq: Run) -> None:
    _, alone = run_repq("train", *QUICK, "mode=merged", "quant=w4a4")
    assert alone is not None and not ROOT.exists()  # fp.reuse=false neither takes nor keeps
    _, first = run_repq("train", *SHARED, "mode=repq_bn", "quant=w8a8")
    _, second = run_repq("train", *SHARED, "mode=merged", "quant=w4a4", "qat.epochs=1")
    assert first is not None and second is not None
    assert [trained_fp(folder) for folder in (first, second)] == [True, False]
    assert results(second) == results(alone)
    assert (second / "metrics.jsonl").read_text() == (alone / "metrics.jsonl").read_text()
    lineage = row_of(second)["lineage"]
    assert Path(lineage["fp_run"]).resolve() == first and "fp_run" not in row_of(first)["lineage"]
    assert row_of(second)["time"]["fp_seconds"] == row_of(first)["time"]["fp_seconds"]
    assert [place.key for place in stored()] == [lineage["fp_cache"]]


@pytest.mark.no_cover  # tracing would cost more than it tells
def test_a_resumed_run_keeps_the_origin_of_its_stage(after_a_run: Path, run_repq: Run) -> None:
    run_repq("train", *SHARED, "quant=w4a4", "hydra.run.dir=second")
    for folder, origin in ((after_a_run, None), (Path("second"), after_a_run)):
        (folder / "summary.json").unlink()
        assert main(["train", f"resume={folder}"]) == 0
        found = row_of(folder)["lineage"].get("fp_run")
        assert (found and Path(found).name) == (origin and origin.name)


@pytest.mark.no_cover  # tracing would cost more than it tells
@pytest.mark.parametrize(
    "damage", ["weights", "no weights", "log", "about", "kinds in about", "a bit", "other net", "other weights"]
)
def test_a_damaged_stage_is_trained_again(
    damage: str, after_a_run: Path, run_repq: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    place = stored()[0]
    if damage == "weights":
        place.weights.unlink()
        place.weights.write_bytes(b"nothing")
    elif damage == "no weights":
        place.weights.unlink()
    elif damage == "log":
        place.log.unlink()
    elif damage == "about":
        (place.folder / "about.json").write_text('{"run": ')
    elif damage == "kinds in about":
        about = json.loads((place.folder / "about.json").read_text())
        (place.folder / "about.json").write_text(json.dumps(about | {"time": "oops"}))
    elif damage == "a bit":
        content = bytearray(place.weights.read_bytes())
        content[len(content) // 2] ^= 1
        place.weights.write_bytes(content)
    elif damage == "other weights":  # whole, and of the same net: only what was noted of them tells
        content = torch.load(place.weights)
        next(iter(content["net"].values())).add_(1)
        save(place.weights, content)
    else:
        torch.save(torch.load(place.weights) | {"signature": {"model": "another"}}, place.weights)
    code, second = run_repq("train", *SHARED)
    assert code == 0 and second is not None and second != after_a_run
    assert trained_fp(second) and results(second) == results(after_a_run)
    assert Path(FPCache(place.key).about()["run"]).resolve() == second  # type: ignore[index]
    if "about" not in damage:
        assert "cannot be used and is trained again" in capsys.readouterr().out


@pytest.mark.no_cover  # tracing would cost more than it tells
def test_two_runs_at_once_train_one_stage(start_repq: Callable[..., Process]) -> None:
    both = [start_repq("train", *SHARED, f"hydra.run.dir={name}", f"mode={mode}") for name, mode in MODES.items()]
    assert [process.wait() for process in both] == [0, 0]
    assert sorted(trained_fp(folder) for folder in "ab") == [False, True]
    trainer, taker = ("a", "b") if trained_fp("a") else ("b", "a")
    assert row_of(Path(taker))["lineage"]["fp_run"] == trainer


@pytest.mark.no_cover  # tracing would cost more than it tells
def test_the_next_in_line_trains_if_the_trainer_is_killed(start_repq: Callable[..., Process]) -> None:
    long = "fp.epochs=400"
    first, second = ([*SHARED, long, f"hydra.run.dir={name}", f"mode={mode}"] for name, mode in MODES.items())
    trainer = start_repq("train", *first)
    wait_until(lambda: "FP epoch" in log_of("a"))
    with pytest.raises(Taken), FPCache(key_of(long)).held():
        raise AssertionError("the trainer does not hold the lock")
    start_repq("train", *second)
    wait_until(lambda: "waiting for it" in log_of("b"))
    assert "FP epoch" not in log_of("b")
    trainer.send(signal.SIGKILL)
    assert trainer.wait() == -signal.SIGKILL
    wait_until(lambda: "FP epoch" in log_of("b"))
    assert not stored()


@pytest.mark.no_cover  # tracing would cost more than it tells
def test_a_run_that_waits_can_be_stopped(start_repq: Callable[..., Process]) -> None:
    with FPCache(key_of()).held():
        waiting = start_repq("train", *SHARED, "hydra.run.dir=a")
        wait_until(lambda: "waiting for it" in log_of("a"))
        waiting.send(signal.SIGTERM)
        assert waiting.wait() == 143
    assert row_of(Path("a"))["status"] == "interrupted"


def test_a_full_disk_costs_the_copy_and_not_the_run(run_repq: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        from repq_cli.errors import DataError

        raise DataError("No space left on device")

    monkeypatch.setattr(FPCache, "store", full)
    code, folder = run_repq("train", *SHARED)
    assert code == 0 and not stored()
    assert "qat_seconds" not in row_of(folder)["time"], "SHARED trains no QAT"
    assert "is not kept for other runs: No space left" in (folder / "train.log").read_text()  # type: ignore[operator]


def test_a_place_that_cannot_be_used_costs_the_sharing_and_not_the_run(run_repq: Run) -> None:
    ROOT.parent.mkdir(parents=True)
    ROOT.write_text("a file in the way")
    code, folder = run_repq("train", *SHARED)
    assert code == 0 and folder is not None and trained_fp(folder)
    assert "is not shared with other runs" in (folder / "train.log").read_text()


def test_pruning_removes_stages_and_nothing_else(after_a_run: Path, in_folder: Path) -> None:
    """Whatever folder is named: one that holds runs has nothing to prune, and a stage's folder only its own files."""
    assert main(["cache", "prune", "--days", "0", "--root", "outputs"]) == 0 and after_a_run.is_dir()
    place = stored()[0]
    (place.folder / "thesis.tex").write_text("mine")
    assert main(["cache", "prune", "--days", "0"]) == 0
    assert [path.name for path in place.folder.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("days", ["-1", "nan", "soon"])
def test_days_are_a_number_of_days(days: str, in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "prune", "--days", days]) == 2 and days in capsys.readouterr().err


def test_an_empty_cache_is_said_to_be(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "list"]) == 0 and "No FP stage is stored" in capsys.readouterr().out
    assert main(["cache", "prune"]) == 0


def test_cache_list_and_prune(after_a_run: Path, run_repq: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run_repq("train", *SHARED, "rep=acnet")
    died = FPCache("0" * 16)
    died.folder.mkdir()
    died.weights.write_bytes(b"half")
    keys = [place.key for place in stored() if place.about()]
    capsys.readouterr()
    assert main(["cache", "list"]) == 0
    shown = capsys.readouterr().out
    assert all(key in shown for key in keys) and "2 stages" in shown and "acnet" in shown
    assert main(["cache", "prune", "--dry-run"]) == 0 and len(stored()) == 3
    with FPCache(keys[0]).held():
        assert main(["cache", "prune", "--days", "0"]) == 0
        assert f"{keys[0]} is being trained: left alone" in capsys.readouterr().out
    assert [place.key for place in stored()] == [keys[0]]
    assert main(["cache", "prune", "none"]) == 2 and "repq cache list" in capsys.readouterr().err
    assert main(["cache", "prune", keys[0]]) == 0 and not stored()
    assert main(["cache", "list", "--root", "nowhere"]) == 3


def test_what_is_kept_is_whole(after_a_run: Path, run_repq: Run) -> None:
    """Stored weights survive their run, and the log is a copy: the run goes on writing to its own."""
    shutil.rmtree(after_a_run)
    stages = {json.loads(line)["stage"] for line in stored()[0].log.read_text().splitlines()}
    assert stages == {"fp"} and stored()[0].weights.is_file()
    _, second = run_repq("train", *SHARED)
    assert second is not None and not trained_fp(second)
