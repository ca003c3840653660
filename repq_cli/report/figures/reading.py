"""Logs and measurements read without trust: what is no number, or no JSON, is left out and said."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from repq_cli.files import LARGEST as LARGEST_FILE
from repq_cli.files import open_regular, parsed_json, read_regular
from repq_cli.report.reading import LARGEST
from repq_cli.runs.folder import BENCH, folders_with

SHORTEST, LONGEST = 1e-9, 1e12  # milliseconds, and images a second, that can be true


@dataclass(frozen=True)
class Epoch:
    """What the log says at the end of an epoch: its mean loss, validation metric, and the quantizers' steps."""

    loss: float | None
    metric: float | None
    steps: Mapping[str, float]


@dataclass(frozen=True)
class Log:
    """The epochs of each stage by their numbers, from 0; ``damaged`` lines and values could not be used."""

    epochs: Mapping[str, Mapping[int, Epoch]] = field(default_factory=dict)
    damaged: int = 0

    def stage(self, name: str) -> Mapping[int, Epoch]:
        """The epochs of ``fp`` or ``qat``, none where the run had no such stage."""
        return self.epochs.get(name, {})


def number(value: Any) -> float | None:
    """``value`` if it is a number of a size that can be drawn."""
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and -LARGEST < value < LARGEST
    return float(value) if usable else None


def read_log(file: Path, metric: str) -> Log:
    """The ends of epochs in a run's log; a last line that is not yet complete is no damage.

    metric: whose values of validation are read; of an unknown one (empty), those that are there.
    """
    stages: dict[str, dict[int, Epoch]] = {}
    damaged = 0
    try:
        with open_regular(file, LARGEST_FILE) as lines:
            for line in lines:
                if b'"train_loss"' not in line or not line.endswith(b"\n"):
                    damaged += not line.lstrip().startswith(b"{") and bool(line.strip())
                    continue
                entry = _parsed(line)
                stage, index = entry.get("stage"), entry.get("epoch")
                if not isinstance(stage, str) or not isinstance(index, int) or not 0 <= index < 10**6:
                    damaged += 1
                    continue
                steps = entry.get("step_sizes")
                key = f"val_{metric}" if metric else next((key for key in entry if key.startswith("val_")), "")
                found = Epoch(number(entry.get("train_loss")), number(entry.get(key)), _numbers(steps))
                damaged += found.loss is None or (found.metric is None and key in entry)
                stages.setdefault(stage, {})[index] = found
    except OSError:
        return Log()
    return Log({name: dict(sorted(epochs.items())) for name, epochs in stages.items()}, damaged)


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return entry if isinstance(entry, dict) else {}


def _numbers(values: Any) -> dict[str, float]:
    found = {str(key): number(value) for key, value in values.items()} if isinstance(values, dict) else {}
    return {key: value for key, value in found.items() if value is not None}


@dataclass(frozen=True)
class Timing:
    """One net in one engine at one batch size: milliseconds for an image, with the quartiles.

    shape: of an image, empty where it is not known.
    value: of the metric called ``metric`` on ``split`` of ``data``, where the run has one.
    """

    run: str
    model: str
    rep: str
    mode: str
    width: float | None
    bits: tuple[int, int] | None
    shape: tuple[int, ...]
    net: str
    engine: str
    batch: int
    milliseconds: float
    low: float
    high: float
    data: str
    metric: str
    split: str
    value: float | None


@dataclass(frozen=True)
class Bench:
    """One ``bench.json``."""

    path: str
    machine: str
    started: str
    timings: tuple[Timing, ...]


def find_benches(paths: Iterable[Path]) -> tuple[list[Bench], list[str]]:
    """The measurements of inference at and below ``paths``, and notes on what could not be read."""
    files = sorted({file.resolve() for path in paths for file in bench_files(path)})
    notes: list[str] = []
    benches = [bench for file in files if (bench := _bench(file, notes)) is not None]
    return benches, notes


def bench_files(path: Path) -> list[Path]:
    """The measurements at and below ``path``, of inference or of training steps."""
    if path.is_file():
        return [path] if path.name == BENCH else []
    return [folder / BENCH for folder in folders_with({BENCH}, path)]


def _bench(file: Path, notes: list[str]) -> Bench | None:
    content = read_json(file, notes)
    if content is None or content.get("bench") == "train":
        return None
    rows = content.get("rows")
    read = [_timing(row) for row in rows] if isinstance(rows, list) else []
    timings = tuple(timing for timing in read if timing is not None)
    if len(timings) < len(read) or not read:
        notes.append(
            f"{file}: {len(read) - len(timings)} of {len(read)} rows lack a net, engine, batch or credible time."
        )
    return Bench(
        path=str(file),
        machine=machine_of(content),
        started=text_of(content.get("started")),
        timings=timings,
    )


def machine_of(content: dict[str, Any]) -> str:
    """Where it was measured; with its threads, where the file does not say them in one breath."""
    machine, threads = text_of(content.get("machine")), content.get("threads")
    if "thread" in machine or not isinstance(threads, int) or not 0 < threads < 10**6:
        return machine
    return ", ".join(part for part in (machine, f"{threads} thread{'' if threads == 1 else 's'}") if part)


def _timing(row: Any) -> Timing | None:
    if not isinstance(row, dict):
        return None
    names = {key: text_of(row.get(key)) for key in ("run", "model", "rep", "mode", "net", "engine", "data")}
    batch, median, rate = row.get("batch"), number(row.get("median_ms")), row.get("images_per_second")
    if not (
        names["net"]
        and names["engine"]
        and isinstance(batch, int)
        and 0 < batch < 10**6
        and credible(median)
        and (rate is None or credible(number(rate)))
    ):
        return None
    assert median is not None
    own = median / batch if rate is None else 1000 / rate  # for one image
    ends = [number(row.get(name)) for name in ("low_ms", "high_ms")]
    low, high = (own if end is None else end * own / median for end in ends)
    if not all(map(credible, (own, low, high))):
        return None
    measured, bits = row.get("metric"), row.get("bits")
    metric = measured if isinstance(measured, dict) else {}
    return Timing(
        **names,
        width=number(row.get("width")),
        bits=(bits[0], bits[1]) if isinstance(bits, list) and [type(bit) for bit in bits] == [int, int] else None,
        shape=_shape(row.get("input_shape")),
        batch=batch,
        milliseconds=own,
        low=min(low, own),
        high=max(high, own),
        metric=text_of(metric.get("name")),
        split=text_of(metric.get("split")),
        value=number(metric.get("value")),
    )


def credible(value: float | None) -> bool:
    """Whether milliseconds, or images a second, can be true."""
    return value is not None and SHORTEST <= value <= LONGEST


def _shape(value: Any) -> tuple[int, ...]:
    usable = (
        isinstance(value, list) and len(value) == 3 and all(type(side) is int and 0 < side < 10**6 for side in value)
    )
    return tuple(value) if usable else ()


def read_json(file: Path, notes: list[str]) -> dict[str, Any] | None:
    """The mapping in a file, or None and a note, unless the file is not there."""
    try:
        content = parsed_json(read_regular(file))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        notes.append(f"{file} cannot be read: it is damaged, or of another format.")
        return None
    return content


def text_of(value: Any) -> str:
    """``value`` if it is a text."""
    return value if isinstance(value, str) else ""
