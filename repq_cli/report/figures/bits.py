"""The deployed metric against bits: a panel for each model and block, a line for each mode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from repq_cli.modes.catalogue import mode_named, mode_order
from repq_cli.report.cells import over_seeds
from repq_cli.report.figures.drawing import Drawing
from repq_cli.report.figures.labels import Label, annotate
from repq_cli.report.figures.material import Found, Material, line_titles, metric_label
from repq_cli.report.figures.outliers import collapsed_below
from repq_cli.report.figures.style import (
    GREY,
    WIDE,
    keep_to_percent,
    key,
    key_rows,
    line_handle,
    mode_handle,
    panels,
    plain,
    stem,
    styled,
)
from repq_cli.report.lines import Entry, Line, entries_of, settle
from repq_cli.report.runs import Bits, bits_label
from repq_cli.report.sections import Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 4  # blocks of a model beside each other
ROWS = 4  # of a figure
TITLE = 32  # characters of a line above a panel
FP_LINES = {True: ("FP, Plain", (0, (1, 1.5))), False: ("FP, Re-param", "solid")}

Shown = tuple[Line, list[Entry]]


def bits(material: Material) -> Found:
    """A figure for each section that has a model and block at several widths; more than one if there are many."""
    drawings, notes = [], []
    for section in material.sections:
        shown: dict[int, Shown] = {}
        for entry in entries_of(section.lines, share_plain=False):
            if over_seeds(entry.seeds, "metric.deployed").value is not None:
                shown.setdefault(id(entry.line), (entry.line, []))[1].append(entry)
        several = [(line, own) for line, own in shown.values() if len({entry.bits for entry in own}) > 1]
        if several and len(several) < len(shown):
            notes.append(f"bits: {len(shown) - len(several)} lines of {section.title} have one width only.")
        rows = _rows(several)
        for start in range(0, len(rows), ROWS):
            with styled():
                drawings.append(_drawing(section, rows[start : start + ROWS]))
    return drawings, notes


def _rows(shown: Sequence[Shown]) -> list[list[Shown]]:
    """The lines of each model beside each other, in as many rows as they need."""
    models: dict[str, list[Shown]] = {}
    for line, own in shown:
        models.setdefault(line.model, []).append((line, own))
    return [own[start : start + COLUMNS] for own in models.values() for start in range(0, len(own), COLUMNS)]


def _drawing(section: Section, rows: Sequence[Sequence[Shown]]) -> Drawing:
    columns = max(len(row) for row in rows)
    lines = [shown for row in rows for shown in row]
    modes = sorted({entry.mode for _, own in lines for entry in own}, key=mode_order)
    kinds = [plain_fp for plain_fp in (False, True) if any(_fp(line, plain_fp) is not None for line, _ in lines)]
    handles = [(mode_handle(mode), mode_named(mode).title) for mode in modes]
    handles += [(line_handle(FP_LINES[kind][1], width=0.8), FP_LINES[kind][0]) for kind in kinds]
    across = max(columns, 2)
    width = min(2.4, (WIDE - 0.65 - 0.15 * (across - 1)) / across)
    beside = 3 * columns if columns < 3 else 8
    titles = 0.25 if not any(line.variant for line, _ in lines) else 0.37
    top = titles + key_rows(len(handles), beside)
    figure, grid = panels(len(rows), columns, (width, 1.8), gap_x=0.15, gap_y=titles + 0.2, top=top)
    names = iter(line_titles([line for line, _ in lines], TITLE))
    for row, every in zip(rows, grid, strict=True):
        used, unused = every[: len(row)], every[len(row) :]
        for axes in unused:
            axes.remove()
        limits = _limits(section, row)
        for axes, (line, own) in zip(used, row, strict=True):
            axes.set_ylim(*limits)
            keep_to_percent(axes, section.unit)
            _panel(axes, section, line, own)
            axes.set_title(next(names))
            axes.tick_params(labelleft=axes is used[0])
            axes.set_xlabel("bits" if row is rows[-1] else "")
        used[0].set_ylabel(plain(metric_label(section)))
    key(figure, handles, beside)
    name = stem("bits", section.data, section.metric.name, section.metric.split)
    caption = (
        f"{section.title} of deployed nets at each width: means over seeds with their sample standard deviation. "
        f"Thin lines: the FP nets that QAT started from. Arrows: values below the axis."
    )
    return Drawing(name, f"Bits and {section.metric.name}: {section.data}", caption, figure)


def _limits(section: Section, row: Sequence[Shown]) -> tuple[float, float]:
    """Of an axis with room for the means and their spreads, but for values that would leave none for the others."""
    cells = [(entry.bits, over_seeds(entry.seeds, "metric.deployed")) for _, own in row for entry in own]
    found = sorted((cell.value, cell.std or 0.0, bits) for bits, cell in cells if cell.value is not None)
    references = [value for line, _ in row for kind in FP_LINES if (value := _fp(line, kind)) is not None]
    low = found[0][0]
    if section.metric.higher_is_better:
        best = {bits: value for value, _, bits in found}  # what few bits cost all modes stays in sight
        low = min(collapsed_below([value for value, *_ in found]), *best.values())
    kept = [(value, spread) for value, spread, _ in found if value >= low]
    lowest = min([value - spread for value, spread in kept] + [value for value in references if value >= low])
    highest = max([value + spread for value, spread in kept] + references)
    margin = 0.08 * (highest - lowest) or 0.5
    return lowest - margin, highest + margin


def _panel(axes: Axes, section: Section, line: Line, entries: Sequence[Entry]) -> None:
    widths = sorted({entry.bits for entry in entries})
    modes = sorted({entry.mode for entry in entries}, key=mode_order)
    bottom = axes.get_ylim()[0]
    labels, points = [], []
    for kind, (_, dashes) in FP_LINES.items():
        value = _fp(line, kind)
        if value is not None:
            axes.axhline(value, color=GREY, linestyle=dashes, linewidth=0.8, zorder=1)
    for place, mode in enumerate(modes):
        mark = mode_named(mode).mark
        own = {entry.bits: over_seeds(entry.seeds, "metric.deployed") for entry in entries if entry.mode == mode}
        aside = 0.055 * (place - (len(modes) - 1) / 2)  # so that bars of equal values stand beside each other
        found = [(index + aside, own[width]) for index, width in enumerate(widths) if width in own]
        values = [cell.value or 0.0 for _, cell in found]
        axes.errorbar(
            [x for x, _ in found],
            values,
            [(cell.std or 0.0) if value >= bottom else 0.0 for (_, cell), value in zip(found, values, strict=True)],
            color=mark.colour,
            marker=mark.marker,
            linestyle=mark.line,
            elinewidth=0.8,
            zorder=3,
        )
        whiskers = [-1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0]  # along which labels keep away
        points += [
            (x, value + part * (cell.std or 0.0))
            for (x, cell), value in zip(found, values, strict=True)
            if value >= bottom
            for part in whiskers
        ]
        below = [(x, value) for (x, _), value in zip(found, values, strict=True) if value < bottom]
        axes.plot([x for x, _ in below], [bottom] * len(below), mark.marker, color=mark.colour, clip_on=False)
        labels += [Label(x, bottom, f"{section.form(value)} ↓", mark.colour) for x, value in below]
    axes.set_xticks(range(len(widths)), [_tick(width) for width in widths])
    axes.set_xlim(-0.35, len(widths) - 0.65)
    axes.grid(False, axis="x")
    annotate(axes, labels, points)


def _tick(width: Bits) -> str:
    return bits_label(width).removesuffix(" bit")


def _fp(line: Line, plain_fp: bool) -> float | None:
    if line.rep == "none" and not plain_fp and line.runs(True):
        return None  # without branches all modes start from the same net
    return over_seeds(settle(line.runs(plain_fp)), "metric.fp").value
