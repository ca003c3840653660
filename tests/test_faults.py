"""Kills, signals and full disks by the hundred: no traceback, and nothing lost.

The slow run prints its figures, which docs/RELIABILITY.md gives; the quick one tries some.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import FINISHED, TINY, results, row_of
from conftest import QUICK as QUICK_RUN
from PIL import Image
from processes import Process, wait_until

from repq_cli.cli import main
from repq_cli.files import way_out
from repq_cli.train.fp_cache import ROOT

pytestmark = pytest.mark.no_cover  # many cases of lines that other tests cover as well

Start = Callable[..., Process]


MINE = """
from torch import nn
def net(num_classes):
    return nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1),
                         nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes))
"""


def _killed(process: Process, seconds: float) -> None:
    """Kill a process after a while, unless it has ended."""
    time.sleep(seconds)
    process.send(signal.SIGKILL)
    process.wait()


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_kills_at_any_time(start_repq: Start, in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs, sweeps, waiting for a shared stage, and exports, killed anywhere, go on to the same bytes."""
    draw, counts = random.Random(24), Counter[str]()
    names = ("deploy/model.safetensors", "deploy/model.json", "metrics.jsonl", "weights.json")
    long = [*QUICK_RUN, "fp.epochs=2", "qat.epochs=2", "quant=w4a4"]

    def bytes_of(folder: str) -> list[bytes]:
        return [Path(folder, name).read_bytes() for name in names]

    started = time.monotonic()
    assert start_repq("train", *long, "hydra.run.dir=whole").wait(600) == 0
    seconds = time.monotonic() - started
    expected = bytes_of("whole")
    for number in range(30):
        folder = f"run{number}"
        _killed(start_repq("train", *long, f"hydra.run.dir={folder}"), draw.uniform(0, seconds))
        again = [f"resume={folder}"] if Path(folder, "config.yaml").exists() else [*long, f"hydra.run.dir={folder}"]
        assert start_repq("train", *again).wait(600) == 0
        assert bytes_of(folder) == expected
        counts["training"] += 1
    Path("mine.py").write_text(MINE)
    foreign = [
        "+model=module",
        "model.target=mine.net",
        "plugins=[mine]",
        *QUICK_RUN[3:],
        "quant=w4a4",
        "fp.reuse=false",
    ]
    assert start_repq("train", *foreign, "hydra.run.dir=foreign").wait(600) == 0, Path("log").read_text()
    expected_of_foreign = bytes_of("foreign")
    for number in range(5):  # of a network of somebody else's
        folder = f"foreign{number}"
        _killed(start_repq("train", *foreign, f"hydra.run.dir={folder}"), draw.uniform(0, seconds))
        goes_on = [f"resume={folder}", "plugins=[mine]"]
        again = goes_on if Path(folder, "config.yaml").exists() else [*foreign, f"hydra.run.dir={folder}"]
        assert start_repq("train", *again).wait(600) == 0, Path("log").read_text()
        assert bytes_of(folder) == expected_of_foreign
        counts["foreign networks"] += 1
    shutil.copytree("whole", "longer")
    assert start_repq("train", "resume=longer", "qat.epochs=3").wait(600) == 0
    expected_of_longer = bytes_of("longer")
    for number in range(6):  # of a run that goes on to more epochs
        folder = str(shutil.copytree("whole", f"longer{number}"))
        _killed(start_repq("train", f"resume={folder}", "qat.epochs=3"), draw.uniform(0, seconds / 2))
        assert start_repq("train", f"resume={folder}", "qat.epochs=3").wait(600) == 0, Path("log").read_text()
        assert bytes_of(folder) == expected_of_longer and row_of(Path(folder))["status"] == "done"
        counts["extensions"] += 1
    sweep = ["train", "-m", *QUICK_RUN, "quant=w4a4,w2a2", "fp.reuse=true"]
    started = time.monotonic()
    assert start_repq(*sweep, "hydra.sweep.dir=sweep").wait(600) == 0
    seconds = time.monotonic() - started
    of_sweep = [bytes_of(f"sweep/{job}") for job in (0, 1)]
    for number in range(10):
        shutil.rmtree(ROOT, ignore_errors=True)
        folder = f"sweep{number}"
        _killed(start_repq(*sweep, f"hydra.sweep.dir={folder}"), draw.uniform(0, seconds))
        again = (
            ["train", f"resume={folder}"]
            if Path(folder, "sweep.json").exists()
            else [*sweep, f"hydra.sweep.dir={folder}"]
        )
        assert start_repq(*again).wait(600) == 0
        assert [bytes_of(f"{folder}/{job}") for job in (0, 1)] == of_sweep
        counts["sweeps"] += 1
    for number in range(6):  # of two that want one stage, the one that trains it
        shutil.rmtree(ROOT, ignore_errors=True)
        shared = [*long, "fp.reuse=true"]
        trainer = start_repq("train", *shared, f"hydra.run.dir=first{number}")
        wait_until(lambda: any(ROOT.glob("*.lock")))
        other = start_repq("train", *shared, f"hydra.run.dir=second{number}")
        _killed(trainer, draw.uniform(0, 3))
        assert other.wait(600) == 0 and bytes_of(f"second{number}") == expected
        counts["cache locks"] += 1
    assert main(["export", "run=whole"]) == 0
    exported = Path("whole/export/model.onnx").read_bytes()
    for number in range(8):
        out = Path(f"export{number}")
        _killed(start_repq("export", "run=whole", f"out={out}"), draw.uniform(0, 4))
        assert not (out / "model.onnx").exists() or (out / "model.onnx").read_bytes() == exported
        assert start_repq("export", "run=whole", f"out={out}").wait(600) == 0
        assert [path.name for path in out.iterdir()] == ["model.onnx"]
        assert (out / "model.onnx").read_bytes() == exported
        counts["exports"] += 1
    with capsys.disabled():
        print(f"\nkills: {dict(counts)}, {sum(counts.values())} in all")


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _stopped_whole(start: Start, arguments: list[str], seconds: float, run: Path) -> int:
    """The exit code of a command that gets SIGTERM after a while: it leaves nothing half done."""
    before = {name: (run / name).read_bytes() for name in _files(run)}
    process = start(*arguments)
    time.sleep(seconds)
    if process.is_alive():
        process.send(signal.SIGTERM)
    code = process.wait()
    if code == -signal.SIGTERM:  # before any of ours runs, or behind it; to a shell that is 143 as well
        code = 143
    assert code in (0, 143), (arguments, code, Path("log").read_text())
    assert "Traceback" not in Path("log").read_text(), (arguments, Path("log").read_text())
    left = [str(path) for path in Path().rglob("*") if "unproven" in path.name or "partial" in path.name]
    assert not left, (arguments, left)
    if code == 143:
        now = {name: (run / name).read_bytes() for name in before}
        assert {name for name in before if now[name] != before[name]} <= {"summary.json"}, arguments
    return code


def test_sigterm_leaves_nothing_half_done(finished: Path, start_repq: Start) -> None:
    _stopped_whole(start_repq, ["export", f"run={finished}"], 0.5, finished)


# Commands that read much before they write; of pictures in folders, of which there are some.
READING: dict[str, list[str]] = {
    "export": ["export", "run={run}"],
    "eval": ["eval", "run={run}"],
    "eval of a folder": ["eval", "run={run}", "data=image_folder", "data.root=pictures", "data.size=32"],
    "train of a folder": ["train", *TINY, "data=image_folder", "data.root=pictures", "data.size=32", "data.workers=2",
                          "data.cache_mib=0", "data.disk_cache=true", "data.batch_size=32", "hydra.run.dir=of_folder"],
    "diagnose": ["diagnose", "run={run}", "images=64"],
    "predict": ["predict", "run={run}", "in=pictures", "out=found.csv", "overwrite=true"],
    "upscale": ["upscale", "run=sr", "in=pictures/test", "out=large", "overwrite=true"],
    "bench": ["bench", "runs=[{run}]", "rounds=2", "batch=1", "out=measured"],
    "plot": ["plot", "{run}", "--format", "svg", "--figure", "steps,weights", "--out", "figures"],
    "report": ["report", "{run}", "--out", "page.html"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_sigterm_at_any_time_of_every_command(
    finished: Path, start_repq: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten times each; what a stopped command left, the next one of its kind removes, and ends well."""
    draw, counts = random.Random(24), Counter[str]()
    generator = np.random.default_rng(0)
    for part, number in itertools.product(("train", "test"), range(120)):
        path = Path("pictures", part, str(number % 10), f"{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (64, 48), np.uint8)).save(path)
    small = [
        "+model=ecbsr",
        "model.blocks=1",
        "model.channels=4",
        "quant=w8a8",
        "data.patches=16",
        "data.batch_size=16",
    ]
    epochs = ["fp.epochs=1", "qat.epochs=1", "runtime.threads=1", "verbosity=quiet", "hydra.run.dir=sr"]
    assert main(["train", *small, *epochs]) == 0
    for name, words in READING.items():
        arguments = [word.format(run=finished) for word in words]
        started = time.monotonic()
        assert start_repq(*arguments).wait(600) == 0, Path("log").read_text()
        seconds = time.monotonic() - started
        for _ in range(10):
            shutil.rmtree("of_folder", ignore_errors=True)
            shutil.rmtree("outputs/cache", ignore_errors=True)
            code = _stopped_whole(start_repq, arguments, draw.uniform(0, 1.1 * seconds), finished)
            counts[f"{name}: {code}"] += 1
        shutil.rmtree("of_folder", ignore_errors=True)
        assert start_repq(*arguments).wait(600) == 0, (name, Path("log").read_text())
    with capsys.disabled():
        print(f"\nSIGTERM: {dict(counts)}")


@pytest.mark.slow
def test_a_sweep_of_several_processes_stops_soon(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a process that is no copy of this one: copies wait for the launcher's idle workers.

    They begin in a folder with modules of the names of those that they import first, and take none of them.
    """
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    sweep = ["train", "-m", *TINY, "fp.epochs=400", "quant=w4a4,w2a2", "hydra.sweep.dir=sweep"]
    sweep += ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    for name in ("joblib", "torch", "numpy", "psutil", "repq_cli") if sys.version_info >= (3, 11) else ():
        Path(f"{name}.py").write_text("raise SystemExit('code of the current folder')")
    with Path("log").open("w") as log:
        process = subprocess.Popen([Path(sys.executable).with_name("repq"), *sweep], stdout=log, stderr=log)
    try:
        wait_until(lambda: len(list(Path("sweep").glob("*/config.yaml"))) == 2)
        asked = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 143
        seconds = time.monotonic() - asked
    finally:
        process.kill()
    assert not [path for path in Path("sweep").rglob("*") if "partial" in path.name]
    assert "Traceback" not in Path("log").read_text()
    with capsys.disabled():
        print(f"\na sweep of two processes stopped within {seconds:.1f} s")


@contextmanager
def _largest_file(size: int) -> Iterator[None]:
    """Processes that begin inside the block cannot write more to a file, as on a disk that is nearly full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    "size",
    [2_000, *(pytest.param(size, marks=pytest.mark.slow) for size in (0, 300, 10_000, 20_000, 40_000, 80_000, 10**6))],
)
def test_a_full_disk_is_said_and_the_run_goes_on_afterwards(size: int, finished: Path, start_repq: Start) -> None:
    arguments = ["train", *FINISHED, "hydra.run.dir=run"]
    with _largest_file(size):
        process = start_repq(*arguments, log=None)
    code = process.wait()
    assert code in (0, 3)
    assert not [path for path in Path("run").rglob("*") if "partial" in path.name]
    if size == 2_000:  # the quick one
        assert code == 3
        return
    if code:
        again = ["resume=run"] if Path("run/config.yaml").exists() else arguments[1:]
        assert main(["train", *again]) == 0
    assert results(Path("run")) == results(finished)


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [50, 200, 500, 900])
def test_a_full_file_system(kilobytes: int, finished: Path, start_repq: Start, in_folder: Path) -> None:
    place = in_folder / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a file system cannot be mounted here")
    try:
        process = start_repq("train", *FINISHED, "hydra.run.dir=small/run")
        assert process.wait() in (0, 3) and "Traceback" not in Path("log").read_text()
        assert not [path for path in place.rglob("*") if "partial" in path.name]
        for name in ("config.yaml", "summary.json"):
            assert not (place / "run" / name).exists() or (place / "run" / name).stat().st_size
    finally:
        subprocess.run(["umount", str(place)], check=True)
    assert row_of(finished)["status"] == "done"


def test_output_that_cannot_be_written(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What only prints has failed; what leaves files has not."""
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full here")
    with pytest.MonkeyPatch.context() as patch:
        for arguments, expected in (
            (["table", str(finished)], 3),
            (["report", str(finished), "--out", "page.html"], 0),
        ):
            with full.open("w") as stream:
                patch.setattr("sys.stdout", stream)
                assert main(arguments) == expected
            assert "Standard output" in capsys.readouterr().err
            patch.setattr("sys.stdout", None)
            assert main(arguments) == expected
            assert "Standard output" in capsys.readouterr().err
    assert Path("page.html").read_bytes()


def test_a_run_that_may_not_be_written_is_measured(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of a colleague's share."""
    before = (finished / "summary.json").read_bytes()
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # root may write everywhere
    assert main(["eval", f"run={finished}"]) == 0
    assert "printed only, not kept in its row" in capsys.readouterr().out
    assert (finished / "summary.json").read_bytes() == before


@pytest.mark.parametrize(
    ("number", "fix"), [(errno.EMFILE, "ulimit -n"), (errno.ENOSPC, "free some space"), (errno.EROFS, "choose another")]
)
def test_what_helps_is_said(number: int, fix: str) -> None:
    assert fix in way_out(OSError(number, "refused"))
