"""Where a run's numbers go beside its own log; whatever fails there harms no run."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import QUICK

from repq_cli.cli import main
from repq_cli.errors import DataError
from repq_cli.runs.folder import RunFolder
from repq_cli.train.trackers.csv_file import CSVFile
from repq_cli.train.trackers.tracker import CLASSES, Trackers, require


def test_a_tracker_takes_all_that_a_run_says(
    in_folder: Path, caplog: pytest.LogCaptureFixture, subtests: pytest.Subtests
) -> None:
    for name, (_, _, package) in CLASSES.items():
        with subtests.test(name):
            if package is not None and importlib.util.find_spec(package) is None:
                with pytest.raises(DataError, match=rf"pip install 'repq\[{package}\]'"):
                    require([name])
            else:
                _is_told_a_run_and_more_of_it(name)
                assert "fails" not in caplog.text


def _is_told_a_run_and_more_of_it(name: str) -> None:
    folder = RunFolder("run")
    folder.path.mkdir(exist_ok=True)
    for step in (-1, 1):
        if folder.scalars_file.exists():
            folder.scalars_file.write_bytes(folder.scalars_file.read_bytes() + b"\xff,fp/loss,1\n0,fp/loss\n0,fp/lo")
        trackers = Trackers(folder, [name])
        trackers.begin(step)
        trackers.scalars({"fp/loss": 2.0 - step, "fp/none": float("nan")}, step + 1)
        trackers.scalars({"fp/loss": 0.5}, step + 2)
        trackers.histograms({"weights": torch.tensor([1.0, 2.0, float("inf")])}, step + 2)
        trackers.image("picture", torch.zeros(3, 8, 8, dtype=torch.uint8))
        trackers.outcome({"model": "repvgg_a0", "seed": step}, {"final/deployed": 98.0}, step + 2)
        assert list(trackers.open) == [name]
        trackers.close()
    if name == "tensorboard":
        assert any(b"fp/loss" in path.read_bytes() for path in folder.tensorboard.iterdir())
    elif name == "csv":
        with folder.scalars_file.open(newline="") as file:
            steps = [(int(line["step"]), float(line["value"])) for line in csv.DictReader(file)]
        assert steps == [(0, 3.0), (1, 0.5), (1, 98.0), (2, 1.0), (3, 0.5), (3, 98.0)]
    elif name == "mlflow":
        place = Path("outputs/mlruns").absolute().as_uri()
        client: Any = importlib.import_module("mlflow.tracking").MlflowClient(place)
        (run,) = client.search_runs([client.get_experiment_by_name("repq").experiment_id])
        assert [metric.value for metric in client.get_metric_history(run.info.run_id, "fp/loss")][-2:] == [1.0, 0.5]
    else:
        assert list(Path("outputs/wandb").glob("offline-run-*/*.wandb"))


def test_a_tracker_that_fails_harms_no_run(in_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object) -> None:
        raise ConnectionError("nobody\nanswers")

    monkeypatch.setattr(CSVFile, "scalars", fails)
    line = ["train", *QUICK, "quant=w4a4", "hydra.run.dir=run", "runtime.trackers=[csv]"]
    assert main(line) == 0
    said = Path("run/train.log").read_text()
    assert said.count("The tracker csv fails and is left out from here on (nobody answers); the run goes on.") == 1
    assert json.loads(Path("run/summary.json").read_text())["status"] == "done"
    assert main([*line, "runtime.trackers=[cvs]"]) == 2
