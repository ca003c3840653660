"""Training curves of both stages: the loss of training and the metric of validation over the epochs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from repq_cli.modes.catalogue import mode_named, mode_order
from repq_cli.modes.catalogue.plain import Plain
from repq_cli.modes.mode import Mark
from repq_cli.report.cells import Cell, Seeds, mean_cell
from repq_cli.report.figures.drawing import Drawing
from repq_cli.report.figures.material import Found, Material, line_titles
from repq_cli.report.figures.outliers import readable
from repq_cli.report.figures.reading import Epoch
from repq_cli.report.figures.style import (
    GREY,
    LINES,
    WIDE,
    keep_to_percent,
    key,
    key_rows,
    line_handle,
    log_axis,
    mode_handle,
    panels,
    plain,
    stem,
    styled,
)
from repq_cli.report.lines import Line, entries_of, settle, widths
from repq_cli.report.runs import Bits, bits_label
from repq_cli.report.sections import Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

ROWS = 4  # models and blocks of a figure
TITLE = 26  # characters of a line beside a row
COLUMNS = (("fp", "loss"), ("fp", "metric"), ("qat", "loss"), ("qat", "metric"))
FACTOR = 6  # between losses from which on their axis is logarithmic
SMALLEST = 1e-30  # loss that a logarithmic axis may show
LEAST, DECADES = 0.02, 0.5  # of the largest value, or tenfolds: how much an axis shows at least
MOST = 24  # models and blocks in all
RE_PARAM = Mark("#000000", "o", "solid")  # the FP net that all modes but Plain start from


@dataclass(frozen=True)
class Curve:
    """The epochs of some runs that differ in the seed alone."""

    mark: Mark
    line: Any
    epochs: tuple[Mapping[int, Epoch], ...]

    def over_epochs(self, quantity: str) -> list[tuple[int, Cell]]:
        """Epochs, from 1, and the means over seeds of ``loss`` or ``metric``."""
        values: dict[int, list[float]] = defaultdict(list)
        for run in self.epochs:
            for number, epoch in run.items():
                value = epoch.loss if quantity == "loss" else epoch.metric
                if value is not None:
                    values[number + 1].append(value)
        return [(number, mean_cell(values[number])) for number in sorted(values)]


@dataclass(frozen=True)
class Row:
    """The curves of one model and block."""

    line: Line
    fp: tuple[Curve, ...]
    qat: tuple[Curve, ...]
    modes: frozenset[str]
    bits: frozenset[Bits]
    fp_kinds: frozenset[bool]


def curves(material: Material) -> Found:
    """A figure for each section, a row of panels for each model and block; several figures if there are many."""
    drawings, notes = [], []
    for section in material.sections:
        dashes = {width: LINES[index % len(LINES)] for index, width in enumerate(widths(section.lines))}
        lines = {id(entry.line): entry.line for entry in entries_of(section.lines, share_plain=False)}
        rows = [row for line in lines.values() if (row := _row(material, section, line, dashes)).fp or row.qat]
        if len(rows) > MOST:
            notes.append(f"curves: {len(rows) - MOST} of {len(rows)} lines of {section.title} are left out.")
        for start in range(0, min(len(rows), MOST), ROWS):
            with styled():
                drawings.append(_drawing(section, rows[start : min(start + ROWS, MOST)], dashes))
    return drawings, notes


def _row(material: Material, section: Section, line: Line, dashes: Mapping[Bits, Any]) -> Row:
    def logged(seeds: Seeds, stage: str) -> tuple[Mapping[int, Epoch], ...]:
        finished = [run for run in seeds.values() if run.status == "done"] or list(seeds.values())
        found = (material.log(run, section.metric.name).stage(stage) for run in finished)
        return tuple(epochs for epochs in found if epochs)

    fp = {}
    for kind in (True, False) if line.rep != "none" or not line.runs(True) else (True,):
        epochs = logged(settle(line.runs(kind)), "fp")
        if epochs:
            fp[kind] = Curve(Plain.mark if kind else RE_PARAM, "solid", epochs)
    qat = {}
    for entry in line.entries():
        epochs = logged(entry.seeds, "qat")
        if epochs:
            qat[entry.mode, entry.bits] = Curve(mode_named(entry.mode).mark, dashes[entry.bits], epochs)
    modes, bits = frozenset(mode for mode, _ in qat), frozenset(width for _, width in qat)
    return Row(line, tuple(fp.values()), tuple(qat.values()), modes, bits, frozenset(fp))


def _drawing(section: Section, rows: Sequence[Row], dashes: Mapping[Bits, Any]) -> Drawing:
    handles = _handles(rows, dashes)
    left = 0.62 if any(row.line.variant for row in rows) else 0.5
    width = (WIDE - left - 0.1 - 3 * 0.42) / 4
    figure, grid = panels(
        len(rows), 4, (width, 1.25), left=left, gap_x=0.42, gap_y=0.42, top=0.28 + key_rows(len(handles))
    )
    names = line_titles([row.line for row in rows], TITLE)
    for axes_of_row, row, name in zip(grid, rows, names, strict=True):
        for axes, (stage, quantity) in zip(axes_of_row, COLUMNS, strict=True):
            _panel(axes, row.fp if stage == "fp" else row.qat, quantity, section.unit)
            unit = f" ({section.unit})" if section.unit else ""
            what = "training loss" if quantity == "loss" else f"validation {section.metric.name or 'metric'}{unit}"
            axes.set_title(plain(f"{stage.upper()}: {what}"), fontsize=6.5)
            axes.set_xlabel("epoch" if axes_of_row is grid[-1] else "")
        axes_of_row[0].set_ylabel(name)
    key(figure, handles)
    many = max((len(curve.epochs) for row in rows for curve in (*row.fp, *row.qat)), default=1)
    spread = "; bands are the sample standard deviation over seeds" if many > 1 else ""
    caption = (
        f"{section.data}: training loss and validation metric at the end of each epoch, in FP and in QAT{spread}. "
        f"Markers on a panel's edge: what diverged, beyond it."
    )
    name = stem("curves", section.data, section.metric.name, section.metric.split)
    return Drawing(name, f"Training: {section.data}", caption, figure)


def _handles(rows: Sequence[Row], dashes: Mapping[Bits, Any]) -> list[tuple[Line2D, str]]:
    """Modes by colour and marker, bits by the line, FP nets; what there is one of needs no entry but the mode."""
    modes = sorted({mode for row in rows for mode in row.modes}, key=mode_order)
    bits = sorted({width for row in rows for width in row.bits}, reverse=True)
    kinds = {kind for row in rows for kind in row.fp_kinds}
    handles = [(mode_handle(mode, "solid"), mode_named(mode).title) for mode in modes]
    handles += [(line_handle(dashes[width], GREY), bits_label(width)) for width in bits]
    if False in kinds and modes != [Plain.name]:
        handles.append((_marked(RE_PARAM), "FP, Re-param"))
    if True in kinds and Plain.name not in modes:
        handles.append((mode_handle(Plain.name, "solid"), "FP, Plain"))
    return handles


def _marked(mark: Mark) -> Line2D:
    handle = line_handle("solid", mark.colour)
    handle.set_marker(mark.marker)
    return handle


def _panel(axes: Axes, found: Sequence[Curve], quantity: str, unit: str) -> None:
    from matplotlib.ticker import MaxNLocator

    courses = [(number, curve, points) for number, curve in enumerate(found) if (points := curve.over_epochs(quantity))]
    if not courses:
        axes.text(0.5, 0.5, "no log", transform=axes.transAxes, ha="center", va="center", color=GREY)
        axes.set_xticks([])
        axes.set_yticks([])
        return
    for number, curve, points in courses:
        epochs, means = [epoch for epoch, _ in points], [cell.value or 0.0 for _, cell in points]
        spreads = [cell.std or 0.0 for _, cell in points]
        every = max(1, len(points) // 4)
        axes.plot(
            epochs, means, color=curve.mark.colour, linestyle=curve.line, marker=curve.mark.marker, markersize=2.8,
            markevery=(number % every, every), linewidth=1.0, zorder=3,
        )  # fmt: skip
        if any(spreads):
            low = [mean - spread for mean, spread in zip(means, spreads, strict=True)]
            high = [mean + spread for mean, spread in zip(means, spreads, strict=True)]
            axes.fill_between(
                epochs, low, high, color=curve.mark.colour, alpha=0.25 / (1 + len(found) // 2), linewidth=0, zorder=2
            )
    _limit(axes, [(curve.mark, points) for _, curve, points in courses], quantity, unit)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))


def _limit(axes: Axes, courses: Sequence[tuple[Mark, list[tuple[int, Cell]]]], quantity: str, unit: str) -> None:
    """An axis that shows every course but those that diverged, whose markers stand at its edge where they leave it."""
    values = [[cell.value or 0.0 for _, cell in points] for _, points in courses]
    is_log = quantity == "loss" and SMALLEST < FACTOR * min(map(min, values)) < max(map(max, values))
    sign = 1 if quantity == "loss" else -1
    worse = [[math.log10(value) if is_log else sign * value for value in own] for own in values]
    largest = max(abs(value) for own in values for value in own)
    whole = readable(worse, DECADES if is_log else LEAST * largest)
    shown = [value for own, kept in zip(values, whole, strict=True) if kept for value in own]
    if is_log and FACTOR * min(shown) < max(shown):
        log_axis(axes, "y", "{:g}".format, shown)
    elif not all(whole):
        room = 0.08 * (max(shown) - min(shown)) or LEAST * largest
        axes.set_ylim(min(shown) - room, max(shown) + room)
    if quantity == "metric":
        keep_to_percent(axes, unit)
    low, high = axes.get_ylim()
    for (mark, points), own, kept in zip(courses, values, whole, strict=True):
        beyond = [] if kept else [(epoch, value) for (epoch, _), value in zip(points, own, strict=True)]
        at = [(epoch, min(max(value, low), high)) for epoch, value in beyond if not low <= value <= high]
        if at:
            xs, ys = zip(*at, strict=True)
            axes.plot(xs, ys, mark.marker, color=mark.colour, markersize=2.8, clip_on=False)
