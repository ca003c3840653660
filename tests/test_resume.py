"""Stopped, killed and broken runs go on exactly; signals end with a checkpoint."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import LOGGED, QUICK, results, row_of
from processes import Process, wait_until

from repq_cli.cli import main
from repq_cli.errors import Interrupted
from repq_cli.train import stage
from repq_cli.train.engine import Update
from repq_cli.train.interrupt import StopRequest

pytestmark = pytest.mark.no_cover  # many cases of lines that other tests cover as well

Run = Callable[..., tuple[int, Path | None]]


class StopAfter(StopRequest):
    """A signal that comes after a number of checks for it."""

    left = 0

    def __bool__(self) -> bool:
        StopAfter.left -= 1
        if StopAfter.left == 0:
            self.signal_number = signal.SIGINT
        return super().__bool__()


TOOLS = [
    "optim.step_lr=0.5",
    "qat.epochs=2",
    "qat.freeze_steps_at=0.6",
    "qat.steps_within=1.02",
    "qat.reestimate_bn=4",
    "qat.teacher=fp",
]


@pytest.mark.parametrize(
    ("steps", "quant"),
    [
        (2, ["quant=w4a4"]),
        (4, ["quant=w4a4"]),
        (7, ["quant=w4a4"]),
        (8, ["quant=int8_affine", "quant.act_delay=2"]),
        (6, ["quant=bnn", "quant.stochastic=true"]),  # draws go on where they stopped
        (10, ["quant=w4a4", *TOOLS]),
    ],
)
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(
    steps: int,
    quant: list[str],
    logged: Path,
    run_repq: Run,
    in_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Stopped in FP or QAT, in the middle of an epoch or at its end: equal metrics, log, and deployed bytes."""
    arguments = ["train", *QUICK, *quant, "runtime.log_every=2"]
    unbroken = logged if arguments[1:] == LOGGED else run_repq(*arguments)[1]
    assert unbroken is not None
    with monkeypatch.context() as patch:
        patch.setattr("repq_cli.train.interrupt.StopRequest", StopAfter)
        StopAfter.left = steps
        code, stopped = run_repq(*arguments)
    assert code == 130
    assert stopped is not None
    assert row_of(stopped)["status"] == "interrupted"
    assert f"resume={stopped.relative_to(in_folder)}" in capsys.readouterr().out
    assert main(["train", f"resume={stopped}"]) == 0
    assert row_of(stopped)["status"] == "done"
    assert results(stopped) == results(unbroken)
    for name in ("deploy/model.safetensors", "weights.json"):
        assert (stopped / name).read_bytes() == (unbroken / name).read_bytes()
    assert (stopped / "metrics.jsonl").read_text() == (unbroken / "metrics.jsonl").read_text()


def test_a_process_killed_in_qat_goes_on_exactly(
    in_folder: Path, run_repq: Run, start_repq: Callable[..., Process]
) -> None:
    arguments = ["train", *QUICK, "quant=w4a4", "qat.epochs=6", "runtime.log_every=2", "hydra.run.dir=killed"]
    _, unbroken = run_repq(*arguments[:-1])
    process = start_repq(*arguments)
    wait_until(lambda: _three_qat_entries(in_folder / "killed"), process)
    process.send(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (in_folder / "killed/summary.json").exists()
    assert main(["train", "resume=killed"]) == 0
    assert results(in_folder / "killed") == results(unbroken)


def _three_qat_entries(folder: Path) -> bool:
    path = folder / "metrics.jsonl"
    return path.exists() and path.read_text().count('"stage": "qat"') >= 3


def test_ctrl_c_ends_a_process_with_a_checkpoint_and_exit_code_130(in_folder: Path) -> None:
    """A new interpreter, as a person starts it."""
    arguments = ["train", *QUICK, "quant=w4a4", "qat.epochs=200", "runtime.log_every=1", "hydra.run.dir=stopped"]
    command = [sys.executable, "-m", "repq_cli.cli", *arguments]
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            wait_until(lambda: _three_qat_entries(in_folder / "stopped") or process.poll() is not None)
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert "resume=stopped" in output
    assert row_of(in_folder / "stopped")["status"] == "interrupted"
    assert (in_folder / "stopped/checkpoints/last.pt").exists()


def test_sigterm_ends_with_a_checkpoint_and_exit_code_143(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The system's own signal, which a step of QAT sends to its process."""
    real = Update.seen
    steps = []

    def signalling(*arguments: Any) -> tuple[float, float]:
        steps.append(None)
        if len(steps) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr(Update, "seen", signalling)
    assert main(["train", *QUICK, "quant=w4a4", "hydra.run.dir=stopped"]) == 143
    assert len(steps) == 6
    captured = capsys.readouterr()
    assert "Traceback" not in captured.out + captured.err
    assert "resume=stopped" in captured.out
    assert row_of(in_folder / "stopped")["status"] == "interrupted"
    assert (in_folder / "stopped/checkpoints/last.pt").exists()


def test_resume_auto_finds_the_unfinished_run_of_the_same_configuration(
    run_repq: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("repq_cli.train.interrupt.StopRequest", StopAfter)
        StopAfter.left = 2
        _, stopped = run_repq("train", *QUICK, "quant=w4a4")
    Path("outputs/train/zzz").mkdir()
    Path("outputs/train/zzz/config.yaml").write_text("[")  # somebody else's accident
    assert main(["train", *QUICK, "quant=w2a2", "resume=auto"]) == 2
    assert "no unfinished run of this configuration" in capsys.readouterr().err
    assert main(["train", *QUICK, "quant=w4a4", "resume=auto"]) == 0
    assert row_of(stopped)["status"] == "done"


def test_resuming_a_finished_run_says_so(logged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = row_of(logged)
    assert main(["train", f"resume={logged}", "verbosity=normal"]) == 0
    assert "already done" in capsys.readouterr().out
    assert row_of(logged) == before


def test_resume_takes_only_runtime_keys(logged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", f"resume={logged}", "qat.lr=3"]) == 2
    assert "qat.lr=3 cannot be changed by resume=" in capsys.readouterr().err
    assert main(["train", f"resume={logged}", "runtime.log_every=5"]) == 0
    assert main(["train", "resume=nowhere"]) == main(["eval", "run=nowhere"]) == 3
    assert "resume=nowhere is no folder of a run or a sweep" in capsys.readouterr().err


def test_a_run_killed_between_the_first_files_of_qat_goes_on(
    logged: Path, run_repq: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """best.pt of QAT is there and last.pt still of FP: by an error in between, and by a damaged last.pt."""
    unbroken = logged
    real = stage.StageTrainer._log_epoch

    def fails_in_qat(self: stage.StageTrainer, score: float) -> None:
        if self.stage.name == "qat":
            raise OSError(28, "No space left on device")
        real(self, score)

    with monkeypatch.context() as patch:
        patch.setattr(stage.StageTrainer, "_log_epoch", fails_in_qat)
        code, broken = run_repq("train", *QUICK, "quant=w4a4")
    assert code != 0
    assert broken is not None
    assert (broken / "checkpoints/best.pt").exists()
    assert main(["train", f"resume={broken}"]) == 0
    assert results(broken) == results(unbroken)

    (unbroken / "checkpoints/last.pt").write_bytes(b"damaged")
    expected = results(unbroken)
    (unbroken / "summary.json").unlink()
    assert main(["train", f"resume={unbroken}"]) == 0
    assert results(unbroken) == expected


def test_resuming_keeps_the_tensorboard_curves_and_the_first_command(
    run_repq: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    arguments = [*(a for a in QUICK if not a.startswith("runtime.tensorboard")), "quant=w4a4", "runtime.log_every=1"]
    with monkeypatch.context() as patch:
        patch.setattr("repq_cli.train.interrupt.StopRequest", StopAfter)
        StopAfter.left = 6
        _, folder = run_repq("train", *arguments)
    started = row_of(folder)["lineage"]["started"]
    command = row_of(folder)["command_line"]
    assert main(["train", f"resume={folder}"]) == 0
    row = row_of(folder)
    assert (row["lineage"]["started"], row["command_line"]) == (started, command)
    events = EventAccumulator(str(folder / "tb")) if folder else None
    assert events is not None
    events.Reload()
    assert [event.step for event in events.Scalars("fp/loss")] == list(range(1, 5))
    assert [event.step for event in events.Scalars("qat/loss")] == list(range(5, 9))


def test_a_run_killed_before_its_first_checkpoint_starts_over(logged: Path, in_folder: Path) -> None:
    unbroken = logged
    killed = in_folder / "killed"
    (killed / "checkpoints").mkdir(parents=True)
    shutil.copy(unbroken / "config.yaml", killed)
    (killed / "metrics.jsonl").write_text('{"stage": "fp", "step": 10}\n')
    assert main(["train", "resume=killed"]) == 0
    assert (killed / "metrics.jsonl").read_text() == (unbroken / "metrics.jsonl").read_text()


def test_a_second_interrupt_is_not_an_exception_that_a_sweep_swallows() -> None:
    assert not issubclass(Interrupted, Exception)


def test_a_run_of_an_earlier_version_goes_on_with_todays_defaults(logged: Path) -> None:
    """Its config.yaml lacks the keys that came later."""
    folder = logged
    config = yaml.safe_load((folder / "config.yaml").read_text())
    for key in ("pad_value", "symmetric"):
        del config["quant"][key]
    del config["mode"]["post_bn"]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "summary.json").unlink()
    assert main(["train", f"resume={folder}"]) == 0
