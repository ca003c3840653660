"""What may stand in one table: runs on the same data, judged by the same metric on the same split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

from repq_cli.report.grouping import lines_of
from repq_cli.report.lines import Line
from repq_cli.report.runs import Metric, Run
from repq_cli.runs.quality import UNITS, number

UNKNOWN = Metric("", "", True)
UNKNOWN_DATA = "unknown data"
OF_FEATURES = ("loss", "score")  # metrics of task=features


@dataclass(frozen=True)
class Section:
    """Runs that tables may compare."""

    data: str
    metric: Metric
    runs: tuple[Run, ...]

    @cached_property
    def lines(self) -> list[Line]:
        """What tables are made of."""
        return lines_of(self.runs)

    @property
    def is_of_classes(self) -> bool:
        """Whether images were classified: no pictures enlarged, and no metric of somebody's own."""
        return not self.metric.name.startswith(("psnr", "ssim")) and self.metric.name not in OF_FEATURES

    @property
    def title(self) -> str:
        """Data, metric and split in words."""
        if self.metric == UNKNOWN:
            return f"{self.data}: nothing was measured"
        unit = f" ({self.unit})" if self.unit else ""
        return f"{self.data}, {self.metric.name}{unit} on {self.metric.split}"

    @property
    def form(self) -> Callable[[float], str]:
        """The metric's number as text."""
        return partial(number, metric=self.metric.name)

    @property
    def unit(self) -> str:
        """The metric's unit, empty where it has none."""
        return UNITS.get(self.metric.name, "")


def sections_of(runs: Sequence[Run]) -> list[Section]:
    """One section for each data set, metric and split.

    Runs that measured nothing, such as failed ones, stand in every section of their data set (of their model, where the
    row does not name the data), in one of their own if there is none.
    """
    measured: dict[tuple[str, Metric], list[Run]] = defaultdict(list)
    for run in runs:
        if run.metric is not None:
            measured[run.data or UNKNOWN_DATA, run.metric].append(run)
    groups = {key: list(group) for key, group in measured.items()}
    for run in runs:
        if run.metric is None:
            homes = [key for key, group in measured.items() if _belongs(run, key[0], group)]
            for key in homes or [(run.data or UNKNOWN_DATA, UNKNOWN)]:
                groups.setdefault(key, []).append(run)
    return [Section(data, metric, tuple(groups[data, metric])) for data, metric in sorted(groups)]


def _belongs(run: Run, data: str, group: Sequence[Run]) -> bool:
    if run.data is None:
        return any(other.model == run.model for other in group)
    return run.data == data and (run.task is None or run.task in {other.task for other in group})
