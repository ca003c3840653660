"""All figures that ``repq plot`` and ``repq report`` can draw of what they are given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from repq_cli.report.figures.bits import bits
from repq_cli.report.figures.crops import crops
from repq_cli.report.figures.curves import curves
from repq_cli.report.figures.drawing import Drawing
from repq_cli.report.figures.latency import latency
from repq_cli.report.figures.material import Found, Material
from repq_cli.report.figures.pareto import pareto
from repq_cli.report.figures.reading import find_benches
from repq_cli.report.figures.speed import speed
from repq_cli.report.figures.step_reading import find_step_benches
from repq_cli.report.figures.steps import steps
from repq_cli.report.figures.training import training
from repq_cli.report.figures.weights import weights
from repq_cli.report.notes import notes_on_failures
from repq_cli.report.reading import find_runs
from repq_cli.report.runs import compared
from repq_cli.report.sections import sections_of
from repq_cli.runs.folder import BENCH

__all__ = ["FIGURES", "Drawing", "drawings"]


class Kind(NamedTuple):
    """How figures of a name are drawn, what they show, and what they need."""

    draw: Callable[[Material], Found]
    summary: str
    needs: str


FIGURES = {
    "pareto": Kind(pareto, "the metric against bit operations, and the Pareto front", "finished runs with their cost"),
    "bits": Kind(
        bits,
        "the metric against bits, a line for each mode, a panel for each model and block",
        "finished runs of one model at two widths or more",
    ),
    "latency": Kind(
        latency,
        "the metric against measured latency, float and integers",
        "measurements (bench.json of repq bench) of nets whose metric is known",
    ),
    "speed": Kind(
        speed,
        "milliseconds for an image: each net in each engine of a bench.json, batch by batch",
        "measurements (bench.json of repq bench)",
    ),
    "training": Kind(
        training,
        "milliseconds of a training step: each block, mode and peer of a bench.json, eager and compiled",
        "measurements (bench.json of repq bench bench=train)",
    ),
    "curves": Kind(
        curves, "loss and validation metric over the epochs of both stages", "runs with a log (metrics.jsonl)"
    ),
    "steps": Kind(
        steps, "step sizes of the quantizers over QAT", "runs whose log (metrics.jsonl) has the quantizers' steps"
    ),
    "weights": Kind(
        weights,
        "weights of branches, merged, and quantized, in units of the step",
        "runs with weights.json, which newer runs write at their end",
    ),
    "crops": Kind(
        crops,
        "enlarged pictures side by side",
        "super-resolution runs with crops/, which newer runs write at their end",
    ),
}


def drawings(paths: Sequence[Path], names: Sequence[str] = ()) -> tuple[list[Drawing], list[str]]:
    """The figures called ``names``, or all for which there is something to show, and notes on what they leave out.

    A path is a run, a folder of runs, or a bench.json. Raises DataError for one that does not exist.
    """
    benches, notes = find_benches(paths)
    step_benches, more_notes = find_step_benches(paths)
    notes += more_notes
    found, said = find_runs([path for path in paths if not _is_bench(path)])
    runs = sorted(found, key=lambda run: run.folder)
    material = Material(sections_of(compared(runs)), benches, step_benches)
    drawn: list[Drawing] = []
    for name in FIGURES:
        if not names or name in names:
            own, more = FIGURES[name].draw(material)
            if names and not own:
                more = [*more, f"There is nothing for the figure {name}: it needs {FIGURES[name].needs}."]
            drawn, notes = drawn + own, notes + more
    notes += [*material.damage(), *notes_on_failures(runs), *_of_runs(said, bool(benches or step_benches))]
    return _distinct(drawn), list(dict.fromkeys(notes))


def _is_bench(path: Path) -> bool:
    return path.is_file() and path.name == BENCH


def _of_runs(notes: Sequence[str], measured: bool) -> list[str]:
    """A folder of measurements need hold no runs."""
    return [note for note in notes if not (measured and note.endswith("holds no runs."))]


def _distinct(drawn: Sequence[Drawing]) -> list[Drawing]:
    """With a number behind names that were given before, and words that any file can hold."""
    taken: set[str] = set()
    found = []
    for drawing in drawn:
        name, count = drawing.name, 1
        while name in taken:
            count += 1
            name = f"{drawing.name}-{count}"
        taken.add(name)
        found.append(replace(drawing, name=name, title=_printable(drawing.title), caption=_printable(drawing.caption)))
    return found


def _printable(text: str) -> str:
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
