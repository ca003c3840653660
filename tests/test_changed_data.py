"""A run, and every run of a sweep, goes on with the data that it began with, or is told to go on with another."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, results, row_of
from PIL import Image
from test_resume import StopAfter

from repq_cli.cli import main
from repq_cli.data.identity import Identity
from repq_cli.runs.folder import RunFolder
from repq_cli.train.fp_cache import stored
from repq_cli.train.same_data import known_data

pytestmark = pytest.mark.no_cover  # many cases of lines that other tests cover as well

Run = Callable[..., tuple[int, Path | None]]

SHARED = [text for text in TINY if text not in ("fp.reuse=false", "verbosity=quiet")]
QUICKER = ["data.batch_size=8", "quant.init=lsq", "qat.steps_within=null"]
ARGUMENTS = [*SHARED, "data=image_folder", "data.root=images", *QUICKER, "fp.epochs=2"]
ACCEPT = "runtime.changed_data=accept"


@pytest.fixture
def images(in_folder: Path) -> Path:
    """Two classes, without a validation split of their own."""
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            folder = in_folder / "images" / part / name
            folder.mkdir(parents=True)
            for index in range(20):
                Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder / f"{index:02d}.bmp")
    return in_folder / "images"


@pytest.fixture
def stop(run_repq: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Path]:
    """The folder of a run that was stopped after so many steps, four of which make an epoch."""

    def stopped(steps: int) -> Path:
        with monkeypatch.context() as patch:
            patch.setattr("repq_cli.train.interrupt.StopRequest", StopAfter)
            StopAfter.left = steps
            code, folder = run_repq("train", *ARGUMENTS)
        assert code == 130 and folder is not None
        return folder

    return stopped


def redraw(images: Path) -> None:
    """Remove an image and copy six into the other class, so that the validation split is drawn anew."""
    (images / "train/cat/03.bmp").unlink()
    for index in range(10, 16):
        shutil.copy(images / f"train/dog/{index}.bmp", images / f"train/cat/x{index}.bmp")


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_resume_over_changed_data_is_refused_or_accepted_with_a_word(
    images: Path, stop: Callable[[int], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = stop(3)  # in the middle of FP
    shutil.copytree(images, "kept")
    redraw(images)
    before = files_of(folder)
    for arguments in ([f"resume={folder}"], [*ARGUMENTS, "resume=auto"]):
        assert main(["train", *arguments]) == 3
        said = capsys.readouterr().err
        for part in ("1 removed (train: cat/03.bmp)", "6 added (", "moved between the splits", ACCEPT):
            assert part in said
    assert files_of(folder) == before
    assert main(["train", f"resume={folder}", ACCEPT]) == 0
    lineage = row_of(folder)["lineage"]
    assert "1 removed (train: cat/03.bmp)" in lineage["changed_data"] and "which is accepted" in capsys.readouterr().out
    assert not stored(), "a stage that was trained on two data sets is that of neither"
    (folder / "summary.json").unlink()
    assert main(["train", f"resume={folder}"]) == 0  # of the data that it goes on with now
    assert row_of(folder)["lineage"]["changed_data"] == lineage["changed_data"]
    (folder / "summary.json").unlink()
    shutil.rmtree(images)
    shutil.move("kept", images)
    assert main(["train", f"resume={folder}"]) == 3


@pytest.mark.parametrize("steps", [3, 10])
def test_changed_test_images_are_refused_and_moved_ones_are_the_same(
    steps: int, images: Path, stop: Callable[[int], Path], run_repq: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """In FP and in QAT; after images were copied back, with other times and inodes, the run goes on."""
    folder = stop(steps)
    shutil.copytree(images, "kept")
    first, second = sorted(images.glob("test/*/05.bmp"))
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    assert main(["train", f"resume={folder}"]) == 3
    assert "2 changed (test/test: cat/05.bmp; test/test: dog/05.bmp)" in capsys.readouterr().err
    shutil.rmtree(images)
    shutil.move("kept", images)
    assert main(["train", f"resume={folder}"]) == 0
    assert "changed_data" not in row_of(folder)["lineage"] and len(stored()) == 1
    _, unbroken = run_repq("train", *ARGUMENTS, "fp.reuse=false")
    assert results(folder) == results(unbroken)


def test_a_run_of_an_earlier_version_goes_on_unchecked_once(images: Path, stop: Callable[[int], Path]) -> None:
    folder = stop(3)
    RunFolder(folder).data_file.unlink()
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("  changed_data: refuse\n", ""))
    redraw(images)
    assert main(["train", f"resume={folder}"]) == 0
    assert "cannot be checked" in (folder / "train.log").read_text()
    (folder / "summary.json").unlink()
    (images / "train/cat/04.bmp").unlink()
    assert main(["train", f"resume={folder}"]) == 3
    assert main(["train", f"resume={folder}", ACCEPT]) == 0


def test_data_that_does_not_tell_what_it_holds_is_said_to_go_unchecked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("repq"), "propagate", True)
    folder, unknown = RunFolder(tmp_path), Identity({"train": None, "val": None})
    unknown.save(folder.data_file)
    with caplog.at_level("INFO"):
        assert known_data(unknown, folder, True, None, False) == unknown
    assert "does not tell all that it consists of: whether it has changed cannot be checked" in caplog.text


def test_the_runs_of_a_sweep_have_one_data_set(images: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Those that are stopped and those that have not begun are refused before anything is trained."""
    arguments = [text for text in ARGUMENTS if text != "fp.epochs=2"]  # TINY's is 1
    sweep = ["-m", *arguments, "qat.epochs=0", "seed=0,1,2", "hydra.sweep.dir=sweep"]
    assert main(["train", *sweep]) == 0
    Path("sweep/1/summary.json").unlink()
    shutil.rmtree("sweep/2")
    shutil.copytree(images, "kept")
    redraw(images)
    before = files_of(Path("sweep"))
    assert main(["train", "resume=sweep", "hydra/launcher=joblib", "hydra.launcher.n_jobs=1"]) == 3
    assert "1 removed (train: cat/03.bmp)" in capfd.readouterr().err
    after = files_of(Path("sweep"))
    assert all(after[path] == content for path, content in before.items() if path.parent.name in "012")
    assert not {path.name for path in after if "2" in path.parts} - {".lock", "train.log"}
    shutil.copytree("sweep", "accepted")
    shutil.move(images, "changed")
    shutil.move("kept", images)
    assert main(["train", "resume=sweep"]) == 0
    shutil.rmtree(images)
    shutil.move("changed", images)
    assert main(["train", "resume=accepted", ACCEPT]) == 0
    changed = ["changed_data" in row_of(Path("accepted", number))["lineage"] for number in "012"]
    assert changed == [False, True, True]


def test_a_stage_that_goes_on_with_other_sources_is_not_shared(
    images: Path, stop: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stop(3)
    monkeypatch.setattr("repq_cli.train.fp_key.VERSIONS", ("torch",))
    assert main(["train", f"resume={folder}"]) == 0
    assert not stored() and "not those that it began with" in (folder / "train.log").read_text()
    assert "fp_run" not in row_of(folder)["lineage"]


def test_eval_keeps_nothing_that_was_measured_on_other_images(
    images: Path, run_repq: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder = run_repq("train", *ARGUMENTS, "qat.epochs=0")
    before = row_of(folder)
    shutil.copytree(images, "other")
    Path("other/test/cat/05.bmp").unlink()
    assert main(["eval", f"run={folder}"]) == 0
    assert "not kept" not in capsys.readouterr().out
    for arguments in (["data=image_folder", "data.root=other"], []):
        assert main(["eval", f"run={folder}", *arguments]) == 0
        assert (
            "other images than the run's (1 removed (test/test: cat/05.bmp)): printed only" in capsys.readouterr().out
        )
        assert row_of(folder) == before
        shutil.rmtree(images)
        shutil.copytree("other", images)
