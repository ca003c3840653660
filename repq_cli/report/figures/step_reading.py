"""Measurements of training steps, read without trust."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repq_cli.report.figures.reading import bench_files, credible, machine_of, number, read_json, text_of


@dataclass(frozen=True)
class StepTime:
    """One kind of training step in one column, such as ``eager``: milliseconds, with the quartiles."""

    model: str
    label: str
    quant: str
    column: str
    stage: str
    mode: str
    by: str
    milliseconds: float
    low: float
    high: float


@dataclass(frozen=True)
class StepBench:
    """One ``bench.json`` of training steps."""

    path: str
    machine: str
    images: str
    steps: tuple[StepTime, ...]


def find_step_benches(paths: Iterable[Path]) -> tuple[list[StepBench], list[str]]:
    """The measurements of training steps at and below ``paths``, and notes on what could not be used.

    Files that cannot be read at all are noted by whoever looks for those of inference.
    """
    found, notes = [], []
    for file in sorted({file.resolve() for path in paths for file in bench_files(path)}):
        content = read_json(file, [])
        if content is not None and content.get("bench") == "train":
            rows = content.get("rows")
            read = [_step(row) for row in rows] if isinstance(rows, list) else []
            steps = tuple(step for step in read if step is not None)
            if len(steps) < len(read) or not read:
                lost = len(read) - len(steps)
                notes.append(f"{file}: {lost} of {len(read)} rows lack a model, label, column or credible time.")
            found.append(StepBench(str(file), machine_of(content), _images(content), steps))
    return found, notes


def _images(content: dict[str, Any]) -> str:
    """``64 images of 32×32``, as far as the file tells."""
    batch, size = (content.get(key) for key in ("batch", "size"))
    if not all(type(count) is int and 0 < count < 10**6 for count in (batch, size)):
        return ""
    return f"{batch} image{'' if batch == 1 else 's'} of {size}×{size}"


def _step(row: Any) -> StepTime | None:
    if not isinstance(row, dict):
        return None
    names = {key: text_of(row.get(key)) for key in ("model", "label", "quant", "column", "stage", "mode", "by")}
    own = number(row.get("median_ms"))
    if not (names["model"] and names["label"] and names["column"] and credible(own)):
        return None
    assert own is not None
    ends = [number(row.get(key)) for key in ("low_ms", "high_ms")]
    low, high = (end if end is not None and credible(end) else own for end in ends)
    return StepTime(**names, milliseconds=own, low=min(low, own), high=max(high, own))
