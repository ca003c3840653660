"""The deployed metric against bits: a panel for each model and block, a line for each mode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from repq_cli.report.cells import over_seeds
from repq_cli.report.figures.drawing import Drawing
from repq_cli.report.figures.material import Found, Material, metric_label
from repq_cli.report.figures.style import (
    GREY,
    WIDE,
    keep_to_percent,
    key,
    key_rows,
    line_handle,
    mode_handle,
    mode_mark,
    panels,
    plain,
    stem,
    styled,
)
from repq_cli.report.runs import Bits, bits_label
from repq_cli.report.sections import Section
from repq_cli.report.settings import Entry, Line, entries_of, mode_order, mode_title, settle

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 4  # panels beside each other
PANELS = 8  # of a figure
FP_LINES = {True: ("FP, Plain", (0, (1, 1.5))), False: ("FP, Re-param", "solid")}


def bits(material: Material) -> Found:
    """A figure for each section that has a model and block at several widths; more than one if there are many."""
    drawings, notes = [], []
    for section in material.sections:
        shown: dict[int, tuple[Line, list[Entry]]] = {}
        for entry in entries_of(section.lines, share_plain=False):
            if over_seeds(entry.seeds, "metric.deployed").value is not None:
                shown.setdefault(id(entry.line), (entry.line, []))[1].append(entry)
        several = [(line, own) for line, own in shown.values() if len({entry.bits for entry in own}) > 1]
        if several and len(several) < len(shown):
            notes.append(f"bits: {len(shown) - len(several)} lines of {section.title} have one width only.")
        for start in range(0, len(several), PANELS):
            with styled():
                drawings.append(_drawing(section, several[start : start + PANELS]))
    return drawings, notes


def _drawing(section: Section, lines: Sequence[tuple[Line, list[Entry]]]) -> Drawing:
    columns = min(len(lines), COLUMNS)
    rows = -(-len(lines) // columns)
    modes = sorted({entry.mode for _, own in lines for entry in own}, key=mode_order)
    kinds = [plain_fp for plain_fp in (False, True) if any(_fp(line, plain_fp) is not None for line, _ in lines)]
    handles = [(mode_handle(mode), mode_title(mode)) for mode in modes]
    handles += [(line_handle(FP_LINES[kind][1], width=0.8), FP_LINES[kind][0]) for kind in kinds]
    across = max(columns, 2)
    width = min(2.4, (WIDE - 0.65 - 0.15 * (across - 1)) / across)
    beside = 4 if columns < 3 else 8
    figure, grid = panels(
        rows, columns, (width, 1.9), gap_x=0.15, gap_y=0.45, top=0.25 + key_rows(len(handles), beside)
    )
    every = [axes for row in grid for axes in row]
    for axes, (line, own) in zip(every, lines, strict=False):
        _panel(axes, line, own)
    used, unused = every[: len(lines)], every[len(lines) :]
    for axes in unused:
        axes.remove()
    low, high = min(axes.get_ylim()[0] for axes in used), max(axes.get_ylim()[1] for axes in used)
    for number, axes in enumerate(used):
        axes.set_ylim(low, high)
        keep_to_percent(axes, section.unit)
        if number % columns:
            axes.tick_params(labelleft=False)
        else:
            axes.set_ylabel(plain(metric_label(section)))
        axes.set_xlabel("bits" if number + columns >= len(used) else "")
    key(figure, handles, beside)
    name = stem("bits", section.data, section.metric.name, section.metric.split)
    caption = (
        f"{section.title} of deployed nets at each width: means over seeds with their sample standard deviation. "
        f"Thin lines: the FP nets that QAT started from."
    )
    return Drawing(name, f"Bits and {section.metric.name}: {section.data}", caption, figure)


def _panel(axes: Axes, line: Line, entries: Sequence[Entry]) -> None:
    widths = sorted({entry.bits for entry in entries})
    modes = sorted({entry.mode for entry in entries}, key=mode_order)
    for kind, (_, dashes) in FP_LINES.items():
        value = _fp(line, kind)
        if value is not None:
            axes.axhline(value, color=GREY, linestyle=dashes, linewidth=0.8, zorder=1)
    for place, mode in enumerate(modes):
        mark = mode_mark(mode)
        own = {entry.bits: over_seeds(entry.seeds, "metric.deployed") for entry in entries if entry.mode == mode}
        aside = 0.055 * (place - (len(modes) - 1) / 2)  # so that bars of equal values stand beside each other
        found = [(index + aside, own[width]) for index, width in enumerate(widths) if width in own]
        axes.errorbar(
            [x for x, _ in found],
            [cell.value or 0.0 for _, cell in found],
            [cell.std or 0.0 for _, cell in found],
            color=mark.colour,
            marker=mark.marker,
            linestyle=mark.line,
            elinewidth=0.8,
            zorder=3,
        )
    axes.set_xticks(range(len(widths)), [_tick(width) for width in widths])
    axes.set_xlim(-0.35, len(widths) - 0.65)
    axes.grid(False, axis="x")
    axes.set_title(plain(line.name))


def _tick(width: Bits) -> str:
    return bits_label(width).removesuffix(" bit")


def _fp(line: Line, plain_fp: bool) -> float | None:
    if line.rep == "none" and not plain_fp and line.runs(True):
        return None  # without branches all modes start from the same net
    return over_seeds(settle(line.runs(plain_fp)), "metric.fp").value
