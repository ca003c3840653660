"""MLflow: a run in ``outputs/mlruns``, or where MLFLOW_TRACKING_URI says. Needs the extra ``mlflow``."""

from __future__ import annotations

import os
import time

from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient
from torch import Tensor

from repq_cli.runs.folder import RunFolder
from repq_cli.runs.outputs import OUTPUTS

EXPERIMENT, FOLDER = "repq", "repq.folder"


class MLflow:
    """Curves, pictures, parameters; a run that is resumed goes on as the same one."""

    def __init__(self, folder: RunFolder) -> None:
        place = os.environ.get("MLFLOW_TRACKING_URI")
        if place is None:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # newer versions want databases, and ask
            OUTPUTS.mkdir(exist_ok=True)
            place = (OUTPUTS / "mlruns").absolute().as_uri()
        self.client = MlflowClient(place)
        self.folder = folder.path.absolute()
        self.run = ""

    def begin(self, step: int) -> None:
        """Find the run of this folder, or make one."""
        known = self.client.get_experiment_by_name(EXPERIMENT)
        experiment = known.experiment_id if known else self.client.create_experiment(EXPERIMENT)
        found = self.client.search_runs([experiment], f"tags.`{FOLDER}` = '{self.folder}'") if step >= 0 else []
        if found:
            self.run = found[0].info.run_id
        else:
            made = self.client.create_run(experiment, tags={FOLDER: str(self.folder)}, run_name=self.folder.name)
            self.run = made.info.run_id

    def scalars(self, values: dict[str, float], step: int) -> None:
        """One curve each."""
        now = int(time.time() * 1000)
        self.client.log_batch(self._run, [Metric(name, value, now, step) for name, value in values.items()])

    def histograms(self, tensors: dict[str, Tensor], step: int) -> None:
        """Nothing: MLflow has none."""

    def image(self, name: str, picture: Tensor) -> None:
        """An artifact."""
        self.client.log_image(self._run, picture.permute(1, 2, 0).numpy(), f"{name.replace('/', '-')}.png")

    def outcome(self, choices: dict[str, str | float], metrics: dict[str, float], step: int) -> None:
        """Parameters and final metrics; a run that has ended once keeps its first parameters and tags the new."""
        old = self.client.get_run(self._run).data.params
        params = [Param(name, str(value)) for name, value in choices.items() if name not in old]
        tags = [RunTag(name, str(value)) for name, value in choices.items() if old.get(name, str(value)) != str(value)]
        self.client.log_batch(self._run, params=params, tags=tags)
        self.scalars(metrics, step)
        self.client.set_terminated(self._run)

    def close(self) -> None:
        """Everything is written already."""

    @property
    def _run(self) -> str:
        if not self.run:
            self.begin(-1)
        return self.run
