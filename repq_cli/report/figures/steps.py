"""Step sizes of a run's quantizers over QAT, relative to those after its first epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from repq_cli.report.figures.drawing import Drawing
from repq_cli.report.figures.labels import Label, annotate
from repq_cli.report.figures.material import Found, Material, run_title, telling_runs
from repq_cli.report.figures.outliers import readable
from repq_cli.report.figures.reading import Epoch
from repq_cli.report.figures.style import GREY, SMALL, log_axis, panels, plain, stem, styled
from repq_cli.report.runs import Run, bits_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.ticker import MaxNLocator

WEIGHTS = "quantizer"  # how the quantizer of a layer's weights is called in its layer
SMALLEST = 1e-30  # step whose ratios can be computed
NAMED = 4  # lines that are labelled: first, last, and those that change most

Course = list[tuple[int, float]]  # epochs from 1, and steps


def steps(material: Material) -> Found:
    """A figure for each run, or for a few where there are many."""
    metrics = {run.folder: section.metric.name for section in material.sections for run in section.runs}

    def logged(run: Run) -> Mapping[int, Epoch]:
        return material.log(run, metrics[run.folder]).stage("qat")

    runs, notes = telling_runs(material.runs, lambda run: any(epoch.steps for epoch in logged(run).values()), "steps")
    drawings = []
    for run in runs:
        courses = _courses(logged(run))
        if courses:
            with styled():
                drawing, left_out = _drawing(run, courses)
            drawings.append(drawing)
            if left_out:
                notes.append(f"{drawing.name}: {left_out} labels are left out for want of room.")
    return drawings, notes


def _courses(epochs: Mapping[int, Epoch]) -> dict[str, Course]:
    """The positive steps of each quantizer over the epochs, in the network's order."""
    found: dict[str, Course] = {}
    for number, epoch in epochs.items():
        for name, step in epoch.steps.items():
            if SMALLEST < step < 1 / SMALLEST:
                found.setdefault(name, []).append((number + 1, step))
    return found


def _drawing(run: Run, courses: Mapping[str, Course]) -> tuple[Drawing, int]:
    of_weights = {name: course for name, course in courses.items() if name.split(".")[-1] == WEIGHTS}
    kinds = {
        "weights": {name.removesuffix(f".{WEIGHTS}"): course for name, course in of_weights.items()},
        "activations": {name: course for name, course in courses.items() if name not in of_weights},
    }
    shown = {kind: own for kind, own in kinds.items() if own}
    several = any(len(course) > 1 for course in courses.values())
    panel = _panel if several else _sizes
    figure, [every] = panels(1, len(shown), (2.9, 2.2), top=0.42, gap_x=0.7, right=0.2, left=0.6)
    missing = sum(panel(axes, kind, own) for axes, (kind, own) in zip(every, shown.items(), strict=True))
    figure.text(0.01, 0.985, plain(run_title(run), 90), va="top", fontweight="bold")
    figure.text(0.99, 0.985, "dark: early layers, light: late ones", va="top", ha="right", fontsize=SMALL)
    what = "at the end of each epoch of QAT, relative to the first one" if several else "after the one epoch of QAT"
    caption = (
        f"{run_title(run)}: the step of each quantizer (over channels, the geometric mean) {what}. Early layers are "
        f"dark, late ones light."
    )
    name = stem("steps", run.model, run.rep, run.mode, bits_label(run.bits), "" if run.seed is None else str(run.seed))
    return Drawing(name, "Step sizes", caption, figure), missing


def _sizes(axes: Axes, kind: str, courses: Mapping[str, Course]) -> int:
    """Of a single epoch, which changes nothing: the steps themselves, in the network's order."""
    points = [(float(place), course[0][1]) for place, course in enumerate(courses.values(), 1)]
    xs, ys = zip(*points, strict=True)
    axes.scatter(xs, ys, s=9, c=_colours(len(points)), zorder=3)
    log_axis(axes, "y", "{:g}".format, [step for _, step in points])
    axes.set_xlim(0.5, len(points) + 0.5)
    axes.xaxis.set_major_locator(_whole_numbers())
    axes.set_xlabel("quantizer, in the network's order")
    axes.set_ylabel("step")
    axes.set_title(kind)
    names = {0: next(iter(courses)), len(points) - 1: list(courses)[-1]}
    return annotate(axes, [Label(*points[place], name) for place, name in names.items()], points, radius=1.2)


def _whole_numbers() -> MaxNLocator:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(5, integer=True, min_n_ticks=1)


def _colours(count: int) -> list[tuple[float, ...]]:
    """From dark to light."""
    from matplotlib import colormaps

    return [colormaps["viridis"](0.88 * index / max(1, count - 1)) for index in range(count)]


def _panel(axes: Axes, kind: str, courses: Mapping[str, Course]) -> int:
    ends, points = [], []
    for (name, course), colour in zip(courses.items(), _colours(len(courses)), strict=True):
        xs, ys = [epoch for epoch, _ in course], [step / course[0][1] for _, step in course]
        axes.plot(xs, ys, color=colour, marker="." if len(xs) < 8 else "", linewidth=1.0, markersize=3)
        points += list(zip(xs, ys, strict=True))
        ends.append((name, xs[-1], ys[-1]))
    changes = [[math.log10(step / course[0][1]) for _, step in course] for course in courses.values()]
    whole = readable([[abs(change) for change in own] for own in changes], math.log10(3))
    values = [10**change for own, kept in zip(changes, whole, strict=True) if kept for change in own]
    points = [(x, min(max(y, min(values)), max(values))) for x, y in points]  # of diverged ones, the axis' end
    if max(values) / min(values) > 3:
        log_axis(axes, "y", "{:g}".format, values)
    else:
        room = 0.12 * (max(values) - min(values)) or 0.05
        axes.set_ylim(min(values) - room, max(values) + room)
    last = max(x for x, _ in points)
    axes.set_xlim(1 - 0.05 * last, last * 1.3 + 0.1)
    axes.hlines(1, 1, last, color=GREY, linewidth=0.6, zorder=1)
    ticks = _whole_numbers().tick_values(1, max(last, 2))
    axes.set_xticks([tick for tick in ticks if 1 <= tick <= last])
    axes.set_xlabel("epoch of QAT")
    axes.set_ylabel("step, relative to the first epoch's")
    axes.set_title(kind)
    chosen = _telling([(name, abs(math.log(y))) for name, _, y in ends])
    ends = [(name, x, min(max(y, min(values)), max(values))) for name, x, y in ends]
    labels = [Label(x, y, name, "#333333") for name, x, y in ends if name in chosen]
    return annotate(axes, labels, points, radius=1.2)


def _telling(changes: Sequence[tuple[str, float]]) -> set[str]:
    """The first and the last quantizer, and those whose steps have changed most."""
    names = [name for name, _ in changes]
    most = [name for name, _ in sorted(changes, key=lambda item: (-item[1], names.index(item[0])))]
    return set(list(dict.fromkeys([names[0], names[-1], *most]))[:NAMED])
