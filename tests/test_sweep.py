"""Sweeps: every legal run once, a row for each whatever happens, and nothing done twice when they go on."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import QUICK, results, row_of
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from processes import Process, wait_until

from repq_cli.cli import main, preflight
from repq_cli.cli.command_line import CommandLine
from repq_cli.cli.jobs import compose_plain, run_key, same_run
from repq_cli.cli.monitor import Monitor
from repq_cli.cli.sweep_plan import plan_of
from repq_cli.config import Config
from repq_cli.errors import ConfigError, DataError
from repq_cli.files import own_name
from repq_cli.runs.sweep import PLAN, Plan, SweepFolder
from repq_cli.train.interrupt import StopRequest

pytestmark = pytest.mark.filterwarnings("ignore:resource_tracker")

SWEPT = ["rep=none,repvgg", "mode=merged,plain", "quant=w8a8,w4a4"]
LEGAL = [2, 3, 4, 5, 6, 7]  # of those eight; the first two have nothing to merge
SMALL = [*(text for text in QUICK if text != "fp.reuse=false"), "model.width=0.0625"]


def plan(*arguments: str) -> Plan:
    return plan_of(CommandLine.parse(["-m", *arguments]))


def folder_of_sweep() -> Path:
    return sorted(Path("outputs/sweep").iterdir())[-1]


def rows(sweep: Path) -> dict[int, dict[str, Any]]:
    found = {int(path.parent.name): json.loads(path.read_text()) for path in sweep.glob("*/summary.json")}
    return dict(sorted(found.items()))


def trained(sweep: Path, stage: str) -> list[int]:
    """The jobs in whose log an epoch of ``stage`` ends, and which are no copies of another."""
    logs = {int(path.parent.name): path.read_text() for path in sweep.glob("*/train.log")}
    copies = {number for number, row in rows(sweep).items() if "same_as" in row.get("lineage", {})}
    return sorted(number for number, log in logs.items() if f"{stage} epoch" in log and number not in copies)


@pytest.mark.no_cover  # tracing would cost more than it tells
def test_the_plan_numbers_jobs_as_hydra_does(in_folder: Path) -> None:
    arguments = ["+model=repvgg_a0,resnet18_cifar", "model.width=0.5", "seed=2,0", "rep=acnet", "quant=w8a8,w4a4"]
    overrides = OverridesParser.create().parse_overrides(plan(*arguments).overrides)
    (batch,) = BasicSweeper.split_arguments(overrides, None)
    found = plan(*arguments)
    assert [[text.lstrip("+") for text in job.overrides] for job in found.jobs] == [
        [text.lstrip("+") for text in job] for job in batch
    ]
    assert found.label(6) == "model=resnet18_cifar seed=0 quant=w8a8"
    assert len({job.key for job in found.jobs}) == 8


@pytest.mark.no_cover  # tracing would cost more than it tells
def test_a_sweep_over_two_blocks_shares_fp_stages_and_plain(in_folder: Path) -> None:
    """Two blocks, four modes, two widths, two seeds: 32 runs, six FP stages, four Plain runs twice."""
    from repq_cli.train.fp_key import fp_key

    modes = ["plain", "merged", "repq_bn", "repq_bnest"]
    configs = [
        compose_plain(["+model=resnet18_cifar", f"rep={rep}", f"mode={mode}", f"quant={quant}", f"seed={seed}"])
        for rep in ("acnet", "orepa")
        for mode in modes
        for quant in ("w8a8", "w2a2")
        for seed in (0, 1)
    ]
    assert len({fp_key(config) for config in configs}) == 3 * 2
    assert len({run_key(config) for config in configs}) == len(configs) - 4
    plain = [config for config in configs if config.mode.name == "plain"]
    assert not same_run(plain[0], plain[4]) and run_key(plain[0]) == run_key(plain[4])


@pytest.mark.no_cover  # tracing would cost more than it tells
def test_a_sweep_leaves_out_what_is_illegal_and_runs_the_same_once(
    in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "-m", *SMALL, *SWEPT, "verbosity=normal"]) == 0
    sweep = folder_of_sweep()
    found = rows(sweep)
    assert list(found) == LEGAL and {row["status"] for row in found.values()} == {"done"}
    assert not (sweep / "0").exists()
    assert trained(sweep, "FP") == [2, 4] and trained(sweep, "QAT") == [2, 3, 4, 5]
    for copy, original in ((6, 2), (7, 3)):
        assert found[copy]["lineage"]["same_as"] == str(sweep / str(original))
        weights = [(sweep / str(job) / "weights.json").read_bytes() for job in (copy, original)]
        assert weights[0] == weights[1]
        assert (found[copy]["rep"], found[original]["rep"]) == ("repvgg", "none")
        assert results(sweep / str(copy)) == results(sweep / str(original))
        assert main(["eval", f"run={sweep / str(copy)}", "verbosity=quiet"]) == 0
        assert "name: repvgg\n" in (sweep / str(copy) / "config.yaml").read_text()
    before = (sweep / "2/train.log").read_text()
    assert main(["train", f"resume={sweep / '6'}"]) == 0  # a copy's logs are its own
    assert (sweep / "2/train.log").read_text() == before != (sweep / "6/train.log").read_text()
    shown = capsys.readouterr().out
    assert "6 runs in outputs/sweep" in shown and "2 of them equal to another one" in shown
    assert "left out: rep=none mode=merged quant=w8a8 and 1 more: mode=merged has nothing to merge" in shown
    assert "[5/6] job 6: rep=repvgg mode=plain quant=w8a8" in shown and "the same run as job 2" in shown
    assert "6 of 6 runs done, 0 failed" in shown
    assert all(row["command_line"].startswith("repq train -m +model=repvgg_a0") for row in found.values())


@pytest.mark.no_cover  # tracing would cost more than it tells
def test_what_a_sweep_starts_from_is_read_before_it_has_a_folder(
    logged: Path, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mistaken = {
        ("fp.checkpoint=nowhere.pth", "quant=w8a8,w4a4"): "There is no checkpoint nowhere.pth",
        (f"fp.checkpoint={logged},nowhere.pth",): "There is no checkpoint nowhere.pth",
        (f"fp.checkpoint={logged}", "rep=acnet,none"): "has rep repvgg and this run rep acnet",
        ("data=cifar10,mnist", "data.root=nowhere"): "data.root=nowhere holds no intact CIFAR10",
    }
    for arguments, sentence in mistaken.items():
        assert main(["train", "-m", *QUICK, *arguments]) == 3
        assert sentence in capsys.readouterr().err
    assert not Path("outputs").exists()
    fitting = [f"fp.checkpoint={logged}", "model.width=0.125,0.25", "rep.kernels=[3],[9]", "verbosity=normal"]
    assert main(["train", "-m", *QUICK, "qat.epochs=0", *fitting]) == 0
    assert list(rows(folder_of_sweep())) == [0]
    shown = capsys.readouterr().out
    assert "1 run in outputs/sweep" in shown and "1 of 1 runs done, 0 failed" in shown
    assert f"left out: model.width=0.25 rep.kernels=[3]: {logged}" in shown and "(6x1x3x3, not 12x1x3x3)" in shown
    assert "left out: model.width=0.125 rep.kernels=[9] and 1 more: rep.kernels=[9] makes no block" in shown


@pytest.mark.no_cover  # tracing would cost more than it tells
def test_a_failing_job_is_told_and_tried_again(
    in_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = preflight.taken

    def gone(config: Config) -> Any:
        if config.seed == 1:
            raise DataError("The images are gone: mount them again.")
        return real(config)

    monkeypatch.setattr(preflight, "taken", gone)
    blocked = Path("mine/2/checkpoints")  # a file where the run wants a folder
    blocked.parent.mkdir(parents=True)
    blocked.touch()
    arguments = ["train", "-m", *SMALL, "qat.epochs=0", "quant=w8a8,w4a4", "seed=0,1", "hydra.sweep.dir=mine"]
    assert main(arguments) == 1
    assert [row["status"] for row in rows(Path("mine")).values()] == ["done", "failed", "failed", "failed"]
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err and "Error executing job" not in captured.err
    assert captured.out.count("The images are gone") == 1  # a reason for two jobs
    assert "1 of 4 runs done, 3 failed" in captured.out
    again = [line.strip() for line in captured.out.splitlines() if line.startswith("    repq train")]
    assert len(again) == 3 and "    repq train resume=mine/2" in captured.out.splitlines()

    blocked.unlink()
    assert main(["train", "resume=mine"]) == 1
    assert [row["status"] for row in rows(Path("mine")).values()] == ["done", "failed", "done", "failed"]
    assert trained(Path("mine"), "FP") == [0]
    command = shlex.split(next(line for line in again if line.endswith("mine/3")))[1:]
    monkeypatch.undo()
    monkeypatch.chdir(in_folder)
    assert main(command) == 0 and row_of(Path("mine/3"))["status"] == "done"


@pytest.mark.no_cover  # tracing would cost more than it tells
def test_a_stopped_sweep_goes_on_as_if_it_had_not_stopped(
    start_repq: Callable[..., Process], in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C, then a process that is killed, then to the end: results as of a sweep that ran through."""
    longer = ["data.batch_size=64", "qat.epochs=3"]
    arguments = ["-m", *SMALL, *longer, "mode=merged,repq", "verbosity=normal"]
    first = start_repq("train", *arguments)
    wait_until(lambda: any("QAT epoch" in log.read_text() for log in Path().glob("outputs/sweep/*/0/train.log")))
    first.send(signal.SIGINT)
    assert first.wait() == 130
    sweep = folder_of_sweep()
    assert rows(sweep)[0]["status"] == "interrupted" and list(rows(sweep)) == [0]
    assert f"Stopped. Go on with: repq train resume={sweep}\n" in Path("log").read_text()

    second = start_repq("train", f"resume={sweep}")
    wait_until(lambda: "job 1" in Path("log").read_text() and (sweep / "1/config.yaml").exists())
    second.end()
    assert main(["train", *arguments, "resume=auto", "verbosity=quiet"]) == 0
    assert trained(sweep, "FP") == [0]
    assert main(["train", *arguments, "hydra.sweep.dir=unbroken", "verbosity=quiet"]) == 0
    for number in (0, 1):
        assert results(sweep / str(number)) == results(Path(f"unbroken/{number}"))
    capsys.readouterr()
    assert main(["train", f"resume={sweep}", "verbosity=normal"]) == 0
    assert "2 done before" in capsys.readouterr().out
    assert main(["train", *arguments, "resume=auto"]) == 2
    assert "finds no unfinished sweep" in capsys.readouterr().err


@pytest.mark.no_cover  # tracing would cost more than it tells
def test_jobs_in_other_processes_stop_after_a_checkpoint(in_folder: Path) -> None:
    """Only the launching process gets the signal; its workers find a file in the sweep's folder."""
    joblib = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    arguments = ["-m", *SMALL, *joblib, "qat.epochs=400", "mode=merged,repq,plain", "verbosity=normal"]
    command = [sys.executable, "-m", "repq_cli.cli", "train", *arguments]  # whose end ends joblib's workers

    def training(number: int) -> bool:
        return any("QAT epoch" in log.read_text() for log in Path("outputs/sweep").glob(f"*/{number}/train.log"))

    with Path("log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until(lambda: training(0) and training(1))
        process.terminate()
        assert process.wait(timeout=120) == 143
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    sweep = folder_of_sweep()
    assert "Go on with: repq train resume=" in Path("log").read_text()
    assert {number: row["status"] for number, row in rows(sweep).items()} == {0: "interrupted", 1: "interrupted"}
    assert all((sweep / str(number) / "checkpoints/last.pt").exists() for number in (0, 1))
    assert not (sweep / "2/config.yaml").exists()
    assert len(trained(sweep, "FP")) == 1  # two processes wanted the one FP stage


@pytest.mark.no_cover  # tracing would cost more than it tells
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "mode=merged", "rep=none", "seed=0,1"], "nothing to merge"),
        (["-m", "seed=0,1", "hydra.sweep.subdir=x"], "the folder of a job is its number"),
        (["resume="], "resume= names nothing"),
        (["resume=auto"], "goes behind the whole command"),
        (["resume=sweep", "seed=3"], "seed cannot be changed by resume="),
        (["resume=broken"], "cannot be read"),
        (["-m", "seed=0,1", "hydra.sweep.dir=sweep"], "holds a sweep already"),
        (["-m", "seed=0,1", "resume=auto"], "finds no unfinished sweep"),
        (["-m", "seed=0,1", "hydra.sweep.dir=a,b"], "names no single folder"),
        (["-m", "seed=0,1", "hydra.sweep.dir="], "names no single folder"),
        (["-m", "seed=0,1", "hydra.sweep.dir=x_${seed}"], "names no single folder"),
        (["-m", "+hydra.sweeper.params.seed=0"], "hydra.sweeper.params.seed cannot be set"),
        (["+sweep=bits,modes"], "names no single saved sweep"),
        (["+sweep=nothing"], "sweep=nothing must be one of"),
        (["resume=varied", "runtime.threads=1"], "runtime.threads is what this sweep varies"),
        (["resume=varied", "runtime.nothing=1"], "runtime.nothing=1 is an unknown key"),
        (["resume=varied", "runtime.log_every=1,2"], "is a sweep: add -m"),
    ],
)
def test_what_is_refused_leaves_nothing(
    arguments: list[str], message: str, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("sweep", "broken"):
        Path(name).mkdir()
    SweepFolder("sweep").write_plan(Plan("repq train -m", ["+model=repvgg_a0"], ["-m"], []))
    Path("broken", PLAN).write_text('{"jobs": [')
    Path("varied").mkdir()
    SweepFolder("varied").write_plan(plan("+model=repvgg_a0", "runtime.threads=1,2"))
    model = [] if arguments[0].startswith("resume=") else ["+model=repvgg_a0"]
    assert main(["train", *arguments, *model]) in (2, 3)
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in in_folder.iterdir()) == ["broken", "sweep", "varied"]


@pytest.mark.no_cover  # tracing would cost more than it tells
@pytest.mark.parametrize(
    ("arguments", "count", "texts"),
    [
        (["+sweep=bits", "+model=repvgg_a0"], 3, ["quant=w2a2"]),
        (["sweep=bits", "+model=repvgg_a0", "quant=w4a4"], 1, ["quant=w4a4"]),
        (["+sweep=modes", "experiment=survey_float", "seed=0,1"], 10, ["mode=repq_bnest", "seed=1"]),
        (["+sweep=paper_table2", "+model=resnet18_cifar", "rep=acnet"], 12, ["mode=plain", "quant=w2a2"]),
        (["+model=repvgg_a0", "quant=glob(w4*,exclude=[w8a8,w2a2])"], 1, ["quant=w4a4"]),
        (["+sweep=paper_table2", "quant=w8a8", "mode=merged"], 5, ["+experiment=imagenet_orepa_resnet18"]),
    ],
)
def test_saved_sweeps_alone_and_on_top(arguments: list[str], count: int, texts: list[str], in_folder: Path) -> None:
    found = plan(*arguments)
    assert len(found.jobs) == count
    said = {text for job in found.jobs for text in job.overrides}
    assert set(texts) <= said and not any(text.startswith(("hydra", "sweep")) for text in said)


def test_the_keys_of_a_model_may_be_set_where_several_are_swept(in_folder: Path) -> None:
    found = plan("+model=repvgg_a0,resnet18_cifar", "model.width=0.25")
    assert all("model.width=0.25" in job.overrides for job in found.jobs)
    with pytest.raises(ConfigError, match=r"model\.blocks"):
        plan("+model=mobilenet_v1,repvgg_a0", "model.blocks=[1,1,1,1]")


def test_the_line_counts_by_what_the_folder_holds(in_folder: Path) -> None:
    sweep = Path("sweep")
    (sweep / ".running").mkdir(parents=True)
    found = plan("+model=repvgg_a0", "seed=0,1,2,3,4")
    for number, status in enumerate(("done", "failed")):
        (sweep / str(number)).mkdir()
        (sweep / str(number) / "summary.json").write_text(json.dumps({"status": status}))
    monitor = Monitor(SweepFolder(sweep), found, StopRequest())
    assert monitor.count()[:4] == (1, 0, 0, 4)  # the failed one is about to be tried again
    assert monitor.seconds_left() is None
    (sweep / ".running/2").touch()
    assert monitor.count()[:4] == (1, 0, 1, 3)
    (sweep / "2").mkdir()
    (sweep / "2/summary.json").write_text('{"status": "done"')
    assert monitor.count()[:4] == (1, 0, 1, 3)  # half-written
    (sweep / "2/summary.json").write_text('{"status": "done"}')
    assert monitor.count()[:4] == (2, 0, 0, 3)  # its process is about to say that it has ended
    (sweep / ".running/3").write_text(f"{own_name().partition('-')[0]}-4194304-x")  # of a process that was killed
    os.utime(sweep / "1/summary.json", (1, 1))  # written anew
    assert monitor.count()[:4] == (2, 1, 0, 2)
    monitor.started -= 100
    assert monitor.seconds_left() == pytest.approx(100, rel=0.05)  # two runs since the start, two to go


@pytest.mark.no_cover  # tracing would cost more than it tells
def test_a_signal_to_one_worker_stops_the_sweep_and_is_told(
    start_repq: Callable[..., Process], in_folder: Path
) -> None:
    """With one job at a time joblib stays in the launching process, where the job takes the signal for its own."""
    in_turn = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=1"]
    process = start_repq("train", "-m", *SMALL, *in_turn, "qat.epochs=400", "seed=0,1")
    wait_until(lambda: any("QAT epoch" in log.read_text() for log in Path().glob("outputs/sweep/*/0/train.log")))
    process.send(signal.SIGINT)
    assert process.wait() == 130
    assert "Go on with: repq train resume=" in Path("log").read_text()


@pytest.mark.no_cover  # tracing would cost more than it tells
def test_odd_names_of_folders(in_folder: Path) -> None:
    """Spaces, commas and quotes reach Hydra as they are, also when a sweep that was moved goes on."""
    assert main(["train", "-m", *SMALL, "qat.epochs=0", "hydra.sweep.dir='my sweep'"]) == 0
    moved = Path("it's, odd=1")
    Path("my sweep").rename(moved)
    (moved / "0/summary.json").unlink()
    assert main(["train", f"resume={moved}"]) == 0
    assert row_of(moved / "0")["status"] == "done"


def test_a_job_that_is_not_the_planned_one_is_refused(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "-m", *SMALL, "qat.epochs=0", "hydra.sweep.dir=mine"]) == 0
    content = json.loads(Path("mine", PLAN).read_text())
    content["jobs"][0]["key"] = "another"
    Path("mine", PLAN).write_text(json.dumps(content))
    Path("mine/0/summary.json").unlink()
    assert main(["train", "resume=mine"]) == 3
    assert "Job 0 of mine is not the one that was planned" in capsys.readouterr().err


def test_a_damaged_plan_is_an_error_of_its_own(in_folder: Path) -> None:
    for content in ("", "[]", "{}", '{"jobs": [{"a": 1}]}', '{"jobs": 3}'):
        Path(PLAN).write_text(content)
        with pytest.raises(DataError, match=r"cannot be read"):
            SweepFolder(".").read_plan()
