"""Milliseconds of a training step: every block, mode and peer of one bench, a panel for each way to run it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from repq_cli.modes.catalogue import mode_named
from repq_cli.report.figures.drawing import Drawing
from repq_cli.report.figures.material import Found, Material
from repq_cli.report.figures.step_reading import StepBench, StepTime
from repq_cli.report.figures.style import GREY, PALE, WIDE, panels, plain, stem, styled
from repq_cli.text import milliseconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 3  # panels beside each other
ROWS = 40  # bars below each other
FP_PLAIN = "FP plain"
OURS = "repq"


def training(material: Material) -> Found:
    """A figure for each model of each bench."""
    drawings, notes = [], []
    for bench in material.step_benches:
        for model in dict.fromkeys(step.model for step in bench.steps):
            own = [step for step in bench.steps if step.model == model]
            columns = list(dict.fromkeys(step.column for step in own))
            names = list(dict.fromkeys(_name(step) for step in own))
            left_out = [*columns[COLUMNS:], *names[ROWS:]]
            if left_out:
                shown = ", ".join(left_out[:3]) + (f" and {len(left_out) - 3} more" if len(left_out) > 3 else "")
                notes.append(f"training: of {bench.path}, {shown} is left out for want of room.")
            with styled():
                drawings.append(_drawing(bench, model, own, columns[:COLUMNS], names[:ROWS]))
    return drawings, notes


def _name(step: StepTime) -> str:
    return f"{step.label} {step.quant}".rstrip()


def _drawing(
    bench: StepBench, model: str, steps: Sequence[StepTime], columns: Sequence[str], names: Sequence[str]
) -> Drawing:
    left, gap = 2.0, 0.3
    width = (WIDE - left - 0.45 - gap * (len(columns) - 1)) / max(len(columns), 2)
    figure, [all_axes] = panels(
        1, len(columns), (width, 0.16 * max(len(names), 4)), left=left, right=0.45, gap_x=gap, top=0.22
    )
    shown = [step for step in steps if step.column in columns and _name(step) in names]
    longest = max(step.milliseconds for step in shown)
    for axes, column in zip(all_axes, columns, strict=True):
        own = {_name(step): step for step in shown if step.column == column}
        _panel(axes, names, own, longest)
        axes.set_title(plain(column, 24))
        axes.set_xlabel("milliseconds a step")
        if axes is not all_axes[0]:
            axes.tick_params(labelleft=False)
    about = ", ".join(word for word in (bench.images, bench.machine) if word)
    caption = (
        f"Median time of a training step of {model} with its quartiles{', ' if about else ''}{about}. In parentheses: "
        f"how many times as long as full precision without branches, run in the same way."
    )
    name = stem("training", Path(bench.path).parent.name, model)
    return Drawing(name, f"Training steps: {model}", caption, figure)


def _panel(axes: Axes, names: Sequence[str], own: dict[str, StepTime], longest: float) -> None:
    reference = own.get(FP_PLAIN)
    axes.set_xlim(0, longest * 1.35)
    for position, name in enumerate(names):
        step = own.get(name)
        if step is not None:
            _bar(axes, position, step, reference, longest)
    axes.set_yticks(range(len(names)), [plain(name, 36) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")


def _bar(axes: Axes, position: int, step: StepTime, reference: StepTime | None, longest: float) -> None:
    """Coloured by mode; full precision in grey, peers hatched, convolutions alone an outline."""
    ours = step.by == OURS
    colour = mode_named(step.mode).mark.colour if step.stage == "qat" and ours else "#9e9e9e" if ours else PALE
    alone = step.stage == "convolutions"
    axes.barh(
        [position], [step.milliseconds], 0.72, color="white" if alone else colour, edgecolor=GREY if alone else "white",
        linewidth=0.6, hatch="" if ours else "////", zorder=2,
    )  # fmt: skip
    end = min(step.high, 1.1 * longest)
    axes.plot([step.low, end], [position, position], color="black", linewidth=0.8, zorder=3)
    ratio = f" ({step.milliseconds / reference.milliseconds:.2f})" if reference is not None else ""
    axes.annotate(
        f"{milliseconds(step.milliseconds)}{ratio}", (max(end, step.milliseconds), position), xytext=(3, 0),
        textcoords="offset points", va="center", fontsize=6, annotation_clip=False,
    )  # fmt: skip
