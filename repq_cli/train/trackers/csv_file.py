"""``metrics.csv`` in the run's folder: a line for each number, for spreadsheets and scripts."""

from __future__ import annotations

import contextlib
import csv
import math
from pathlib import Path

from torch import Tensor

from repq_cli.files import read_regular, write_atomically
from repq_cli.runs.folder import RunFolder

HEADER = "step,name,value\n"


class CSVFile:
    """Step, name and value of every scalar."""

    def __init__(self, folder: RunFolder) -> None:
        self.path: Path = folder.scalars_file

    def begin(self, step: int) -> None:
        """Keep what was logged up to ``step``."""
        written = read_regular(self.path).decode(errors="replace") if self.path.exists() else ""
        lines = written.splitlines(keepends=True)[1:]
        kept = [line for line in lines if line.endswith("\n") and _is_of(line, step)]
        write_atomically(self.path, (HEADER + "".join(kept)).encode())

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Append them."""
        if not self.path.exists():
            self.begin(-1)
        with self.path.open("a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([step, name, value] for name, value in values.items())

    def histograms(self, tensors: dict[str, Tensor], step: int) -> None:
        """Nothing: these are no numbers of a table."""

    def image(self, name: str, picture: Tensor) -> None:
        """Nothing."""

    def outcome(self, choices: dict[str, str | float], metrics: dict[str, float], step: int) -> None:
        """The final metrics; choices stand in config.yaml."""
        self.scalars(metrics, step)

    def close(self) -> None:
        """Nothing is left to be written."""


def _is_of(line: str, step: int) -> bool:
    """Whether a line, which may be damaged, is of that step or an earlier one."""
    with contextlib.suppress(ValueError, csv.Error):
        words = next(csv.reader([line]))
        return len(words) == 3 and int(words[0]) <= step and math.isfinite(float(words[2]))
    return False
