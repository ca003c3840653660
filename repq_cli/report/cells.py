"""A number of a table: the mean over seeds with its spread, or why there is none."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from repq_cli.report.runs import Measured, Run

CellStatus = Literal["done", "failed", "interrupted", "pruned", "unfinished", "missing", "none"]

# The run that counts for each seed (None: its row does not say which).
Seeds = Mapping[int | None, Run]


@dataclass(frozen=True)
class Cell:
    """A mean over ``n`` seeds with its sample standard deviation (n - 1; None for one seed).

    Where there is no value, ``status`` says why; ``none`` is a place where no value belongs, such as Plain's difference
    to Plain. n is 0 for what is not a mean over seeds, such as published figures. best: to be printed in bold.
    """

    value: float | None = None
    std: float | None = None
    n: int = 0
    status: CellStatus = "missing"
    best: bool = False


NONE = Cell(status="none")


def mean_cell(values: Iterable[float]) -> Cell:
    """Mean and sample standard deviation; missing where there are no values. Their order does not matter.

    >>> mean_cell([1.0, 2.0, 3.0])
    Cell(value=2.0, std=1.0, n=3, status='done', best=False)
    """
    found = list(values)
    if not found:
        return Cell()
    mean = math.fsum(found) / len(found)
    squares = math.fsum((value - mean) ** 2 for value in found)
    return Cell(mean, math.sqrt(squares / (len(found) - 1)) if len(found) > 1 else None, len(found), "done")


def median_cell(values: Iterable[float]) -> Cell:
    """The median, for times, which have outliers; missing where there are no values."""
    found = sorted(values)
    if not found:
        return Cell()
    middle = len(found) // 2
    value = found[middle] if len(found) % 2 else (found[middle - 1] + found[middle]) / 2
    return Cell(value, status="done")


def over_seeds(seeds: Seeds, key: str | Measured) -> Cell:
    """The mean of one of the runs' numbers."""
    return mean_cell(values_of(seeds, key).values())


def result(seeds: Seeds, key: str | Measured) -> Cell:
    """The mean of what the runs were for; without any, what became of them."""
    cell = over_seeds(seeds, key)
    return cell if cell.value is not None else Cell(status=_fate(seeds))


def values_of(seeds: Seeds, key: str | Measured) -> dict[int | None, float]:
    """A number of the runs that are done and have it, by seed."""
    numbers = {seed: run.number(key) for seed, run in seeds.items() if run.status == "done"}
    return {seed: value for seed, value in numbers.items() if value is not None}


def paired_difference(first: Mapping[int | None, float], second: Mapping[int | None, float]) -> Cell:
    """The mean of ``first - second`` over the seeds that both have."""
    return mean_cell(first[seed] - second[seed] for seed in first if seed in second)


def ratio(first: Cell, second: Cell) -> Cell:
    """``first / second`` without a spread."""
    if first.value is None or not second.value:
        return Cell()
    return Cell(first.value / second.value, status="done")


def _fate(seeds: Seeds) -> CellStatus:
    statuses = {run.status for run in seeds.values()}
    fates: tuple[CellStatus, ...] = ("failed", "interrupted", "pruned", "unfinished")
    return next((fate for fate in fates if fate in statuses), "missing")


def with_best(cells: Iterable[Cell], higher_is_better: bool, form: Callable[[float], str]) -> list[Cell]:
    """``cells`` with the best marked, all of those that print alike; none where there is nothing to compare it with."""
    found = list(cells)
    values = [cell.value for cell in found if cell.value is not None]
    if len(values) < 2:
        return found
    best = form(max(values) if higher_is_better else min(values))
    return [replace(cell, best=cell.value is not None and form(cell.value) == best) for cell in found]
