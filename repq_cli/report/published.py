"""Figures that papers and official repositories have published: published.json, each with its source."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

PUBLISHED = "Lines with a source are published figures, obtained with other code and schedules."

TableName = Literal["classification", "survey"]


@dataclass(frozen=True)
class Figure:
    """One published figure, and the table in which it stands.

    model, rep: by our names where we have them. weight_bits, act_bits: None where the method's name does not fix them.
    metric: of the test or, for ImageNet, the validation images, in percent.
    source: where it was read; figures that a source quotes from others say so.
    """

    table: TableName
    data: str
    model: str
    rep: str
    method: str
    weight_bits: int | None
    act_bits: int | None
    metric: str
    value: float
    source: str

    @property
    def method_text(self) -> str:
        """What is special about it, beyond full precision."""
        return "" if self.method == "FP" else self.method


@cache
def published() -> tuple[Figure, ...]:
    """All figures, in the file's order."""
    return tuple(Figure(**entry) for entry in json.loads(Path(__file__).with_name("published.json").read_text()))


def figures(table: TableName, data: str) -> list[Figure]:
    """Those of a table and a data set."""
    return [figure for figure in published() if (figure.table, figure.data) == (table, data)]
