"""What every tracker can do, and the list of those that a run has."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from torch import Tensor

from repq_cli.extras import extra
from repq_cli.runs.folder import RunFolder
from repq_cli.runs.row import prune

logger = logging.getLogger("repq")

# The class of each, and, where it is not ours, the package that it needs, after which our extra is called.
CLASSES = {
    "tensorboard": ("repq_cli.train.trackers.tensorboard", "TensorBoard", None),
    "csv": ("repq_cli.train.trackers.csv_file", "CSVFile", None),
    "mlflow": ("repq_cli.train.trackers.mlflow_runs", "MLflow", "mlflow"),
    "wandb": ("repq_cli.train.trackers.wandb_runs", "WeightsAndBiases", "wandb"),
}


class Tracker(Protocol):
    """Shows a run elsewhere. A method that has nothing to do does nothing; whatever one raises harms no run."""

    def begin(self, step: int) -> None:
        """The run starts, or goes on behind ``step``: what was logged after it is logged again."""
        ...

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Finite numbers by name."""
        ...

    def histograms(self, tensors: dict[str, Tensor], step: int) -> None:
        """Tensors, some of whose values may not be finite, by name."""
        ...

    def image(self, name: str, picture: Tensor) -> None:
        """A picture ``uint8 [3, H, W]``."""
        ...

    def outcome(self, choices: dict[str, str | float], metrics: dict[str, float], step: int) -> None:
        """What was chosen and what came of it, at the end."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


class Trackers:
    """Those of a run. One that raises anything is left out from then on, with a warning."""

    def __init__(self, folder: RunFolder, names: Sequence[str]) -> None:
        self.open: dict[str, Tracker] = {}
        for name in names:
            module, kind, _ = CLASSES[name]
            with self._harmless(name):
                self.open[name] = getattr(importlib.import_module(module), kind)(folder)

    def begin(self, step: int) -> None:
        """As a tracker's."""
        self._all(lambda tracker: tracker.begin(step))

    def scalars(self, values: dict[str, float], step: int) -> None:
        """As a tracker's; what is not finite is left out."""
        finite = prune(values)
        self._all(lambda tracker: tracker.scalars(finite, step))

    def histograms(self, tensors: dict[str, Tensor], step: int) -> None:
        """As a tracker's."""
        self._all(lambda tracker: tracker.histograms(tensors, step))

    def image(self, name: str, picture: Tensor) -> None:
        """As a tracker's."""
        self._all(lambda tracker: tracker.image(name, picture))

    def outcome(self, choices: dict[str, str | float], metrics: dict[str, float], step: int) -> None:
        """As a tracker's."""
        self._all(lambda tracker: tracker.outcome(choices, metrics, step))

    def close(self) -> None:
        """As a tracker's."""
        self._all(lambda tracker: tracker.close())
        self.open.clear()

    def _all(self, call: Callable[[Tracker], object]) -> None:
        for name, tracker in list(self.open.items()):
            with self._harmless(name):
                call(tracker)

    @contextmanager
    def _harmless(self, name: str) -> Iterator[None]:
        """Where something is raised inside, the tracker is left out from then on."""
        try:
            yield
        except Exception as error:  # of other people's programs, on disks and networks
            self.open.pop(name, None)
            said = " ".join(str(error).split())[:200] or type(error).__name__
            logger.warning("The tracker %s fails and is left out from here on (%s); the run goes on.", name, said)


def require(names: Sequence[str]) -> None:
    """Raise DataError, with our extra that brings it, where the package of a tracker is missing."""
    for name in names:
        package = CLASSES[name][2]
        if package is not None:
            with extra(package):
                importlib.import_module(package)
