"""Sweeps whose jobs Optuna proposes: every trial leaves a row, and the search goes on wherever it was stopped."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import Process, wait_until
from test_sweep import SMALL, folder_of_sweep, rows

from repq_cli.cli import jobs, main, preflight
from repq_cli.cli.command_line import CommandLine
from repq_cli.cli.sweep_plan import plan_and_search
from repq_cli.cli.trials import Trials, scores
from repq_cli.config import Config
from repq_cli.errors import DataError
from repq_cli.runs.sweep import Job, SweepFolder

optuna = pytest.importorskip("optuna", reason="needs repq[optuna]")
pytestmark = [pytest.mark.no_cover, pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")]
SEARCH = ["-m", *SMALL, "hydra/sweeper=optuna", "qat.lr=tag(log,interval(0.001,0.1))"]


def states(sweep: Path) -> dict[int, str]:
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{sweep}/optuna.db")
    return {trial.user_attrs["job"]: trial.state.name for trial in study.trials}


def test_failed_pruned_and_illegal_trials_leave_rows_and_a_lost_study_is_made_again(
    in_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, run = preflight.taken, jobs.run

    def gone(config: Config) -> Any:
        if config.mode.name == "merged":
            raise DataError("The images are gone: mount them again.")
        return taken(config)

    def given_up(experiment: Any, folder: Path, **keys: Any) -> Any:
        if experiment.mode.name == "repq_bn":
            SweepFolder(folder.parent).prune(int(folder.name))
        return run(experiment, folder, **keys)

    monkeypatch.setattr(preflight, "taken", gone)
    monkeypatch.setattr(jobs, "run", given_up)
    modes = ["mode=merged,repq_bn,repq,plain", "rep=repvgg,none", "hydra.sweeper.sampler=random"]
    assert main(["train", *SEARCH, *modes, "hydra.sweeper.n_trials=8", "qat.epochs=2", "hydra.sweep.dir=mine"]) == 1
    sweep = Path("mine")
    plan = SweepFolder(sweep).read_plan()
    found = {number: row["status"] for number, row in rows(sweep).items()}
    assert set(found.values()) == {"done", "failed", "pruned"} and list(found) == [job.number for job in plan.legal]
    of_optuna = {"done": "COMPLETE", "failed": "FAIL", "pruned": "PRUNED"}
    expected = {job.number: of_optuna[found[job.number]] if job.key else "FAIL" for job in plan.jobs}
    assert states(sweep) == expected and any(job.left_out for job in plan.jobs)
    shown = capsys.readouterr().out
    assert "best: job" in shown and "pruned, in" in shown and " mode=merged rep=none: mode=merged has nothing" in shown

    monkeypatch.undo()
    monkeypatch.chdir(in_folder)
    damaged = bytearray((sweep / "optuna.db").read_bytes())
    damaged[5000:9000] = bytes(4000)  # behind its first page: it opens, and cannot be read
    (sweep / "optuna.db").write_bytes(damaged)
    assert main(["train", "resume=mine", "hydra.sweeper.n_trials=9", "runtime.threads=1"]) == 0
    assert set(rows(sweep)) >= set(found) and {row["status"] for row in rows(sweep).values()} == {"done", "pruned"}
    assert len(SweepFolder(sweep).read_plan().jobs) == 9
    assert "mine/optuna.db cannot be read" in capsys.readouterr().out
    assert main(["table", "mine"]) == 0
    assert "Stopped early by the sweep" in capsys.readouterr().out
    assert main(["train", "resume=mine", "hydra.sweeper.seed=3"]) == 2


def test_a_killed_search_goes_on(start_repq: Callable[..., Process], in_folder: Path) -> None:
    process = start_repq("train", *SEARCH, "hydra.sweeper.n_trials=3", "qat.epochs=6")
    wait_until(
        lambda: any("QAT epoch" in log.read_text() for log in Path().glob("outputs/sweep/*/1/train.log")), process
    )
    process.send(signal.SIGKILL)
    process.wait()
    sweep = folder_of_sweep()
    assert states(sweep) == {0: "COMPLETE", 1: "RUNNING"}
    assert main(["train", f"resume={sweep}"]) == 0
    assert states(sweep) == dict.fromkeys(range(3), "COMPLETE") and len(rows(sweep)) == 3


def test_a_trial_behind_the_others_is_stopped(in_folder: Path) -> None:
    line = CommandLine.parse([*SEARCH, "hydra.sweeper.pruner=median", "hydra.sweeper.n_jobs=7"])
    plan, search = plan_and_search(line, (), inputs=False)
    assert search is not None
    folder = SweepFolder("sweep")
    folder.path.mkdir()
    trials = Trials(folder, plan, search.options, search.swept)
    plan.jobs.extend(search.job(number, values) for number, values in enumerate(trials.propose(7)))
    for job in plan.jobs:
        log = folder.job(job.number).log_file
        log.parent.mkdir()
        entries = [
            {"stage": "fp", "epoch": 0, "val_top1": 1},
            {"stage": "qat", "epoch": 0, "val_top1": 90 - job.number},
        ]
        log.write_text("\n".join(map(json.dumps, entries)) + '\n{"stage": "qat", "ep')
        folder.job(job.number).write_row({"status": "done", "metric": {"deployed": 90}} if job.number < 5 else {})
    assert scores(folder.job(6)) == {0: 84.0}
    trials.watch(set(range(6)))
    assert not any(folder.prune_file(number).exists() for number in range(6))  # too few to compare with
    trials.update()
    trials.watch({5, 6})
    assert folder.prune_file(6).exists()
    assert isinstance(search.again(plan.jobs[0]), Job) and search.again(plan.jobs[0]) == plan.jobs[0]
