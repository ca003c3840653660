"""Sweeps in processes that others start: a job that is killed, or has to make room, and what is left of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import slurm_stand_in
from processes import Process, wait_until
from test_sweep import SMALL, folder_of_sweep, rows, trained

from repq_cli.cli import main

pytestmark = [pytest.mark.no_cover, pytest.mark.filterwarnings("ignore:resource_tracker")]
QAT = "QAT epoch"


def in_qat(*numbers: int) -> Callable[[], bool]:
    def at_it() -> bool:
        logs = [list(Path("outputs/sweep").glob(f"*/{number}/train.log")) for number in numbers]
        return all(log and QAT in log[0].read_text() for log in logs)

    return at_it


def process_of(job: int) -> int:
    return int((folder_of_sweep() / ".running" / str(job)).read_text().split("-")[1])


def test_submitit_ends_what_is_left_when_a_job_is_killed_and_starts_one_again_that_made_room(
    start_repq: Callable[..., Process], in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs repq[slurm]")
    local = ["hydra/launcher=submitit_local", "verbosity=normal"]
    process = start_repq("train", "-m", *SMALL, *local, "qat.epochs=12", "seed=0,1")
    wait_until(in_qat(0, 1), process)
    sweep = folder_of_sweep()
    os.kill(process_of(0), signal.SIGKILL)
    for number in (signal.SIGTERM, signal.SIGUSR2):  # as Slurm does
        os.kill(process_of(1), number)
    assert process.wait(400) == 1
    found = rows(sweep)
    assert {number: row["status"] for number, row in found.items()} == {0: "failed", 1: "done"}
    assert "Its process ended before it could say why" in found[0]["error"]
    assert "Stopped. Go on with" in (sweep / "1/train.log").read_text()
    assert "1 of 2 runs done, 1 failed" in Path("log").read_text()
    assert main(["train", f"resume={sweep}", "hydra/launcher=basic"]) == 0
    assert "2 of 2 runs done, 0 failed" in capsys.readouterr().out and trained(sweep, "QAT") == [0, 1]
    assert [row["status"] for row in rows(sweep).values()] == ["done", "done"]


def test_submitit_stops_after_checkpoints(start_repq: Callable[..., Process], in_folder: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs repq[slurm]")
    process = start_repq("train", "-m", *SMALL, "hydra/launcher=submitit_local", "qat.epochs=400", "seed=0,1")
    wait_until(in_qat(0, 1), process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert process.wait(400) == 130
    sweep = folder_of_sweep()
    assert [row["status"] for row in rows(sweep).values()] == ["interrupted", "interrupted"]
    assert all((sweep / f"{number}/checkpoints/last.pt").exists() for number in (0, 1))


@pytest.mark.slow
def test_ray_starts_a_killed_job_again(start_repq: Callable[..., Process], in_folder: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason="needs repq[ray]")
    ray = [
        "hydra/launcher=ray",
        "+hydra.launcher.ray.init.num_cpus=2",
        "+hydra.launcher.ray.init.include_dashboard=false",
    ]
    process = start_repq("train", "-m", *SMALL, *ray, "qat.epochs=12", "seed=0,1", "verbosity=normal")
    wait_until(in_qat(0, 1), process)
    sweep = folder_of_sweep()
    os.kill(process_of(0), signal.SIGKILL)
    assert process.wait(400) == 0
    assert [row["status"] for row in rows(sweep).values()] == ["done", "done"]
    assert "2 of 2 runs done, 0 failed" in Path("log").read_text()


@pytest.mark.slow
def test_slurm_queues_a_job_again_that_made_room(
    start_repq: Callable[..., Process], in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs repq[slurm]")
    slurm = in_folder / "slurm"
    slurm.mkdir()
    slurm_stand_in.install(slurm)
    monkeypatch.setenv("PATH", f"{slurm}:{os.environ['PATH']}")
    process = start_repq("train", "-m", *SMALL, "hydra/launcher=submitit_slurm", "qat.epochs=12", "seed=0,1")
    wait_until(in_qat(0, 1), process)
    os.kill(process_of(1), signal.SIGUSR2)
    assert process.wait(400) == 0
    assert [row["status"] for row in rows(folder_of_sweep()).values()] == ["done", "done"]
    assert (slurm / "started again 77_1").exists() and not (slurm / "started again 77_0").exists()
