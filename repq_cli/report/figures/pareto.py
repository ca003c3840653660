"""The deployed metric against bit operations, and which nets no other one beats in both."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from repq_cli.modes.catalogue import mode_named, mode_order
from repq_cli.report.cells import Cell, over_seeds
from repq_cli.report.figures.drawing import Drawing
from repq_cli.report.figures.labels import Label, annotate, head
from repq_cli.report.figures.material import Found, Material, metric_label
from repq_cli.report.figures.outliers import collapsed_below
from repq_cli.report.figures.style import (
    GREY,
    PALE,
    keep_to_percent,
    key,
    key_rows,
    log_axis,
    lower_top,
    mode_handle,
    panels,
    plain,
    stem,
    styled,
)
from repq_cli.report.lines import Entry, entries_of
from repq_cli.report.runs import bits_label
from repq_cli.report.sections import Section
from repq_cli.report.tables.bops import pareto_front
from repq_cli.text import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 5.2  # inches
CROWD = 40  # nets beyond which only those on the front are named
HEADS = 3  # rows above the axes
HEAD = 0.13  # inches: one of them
NEAR = 9.0  # points: labels of the others stand no farther


class Net(NamedTuple):
    """A point of the figure."""

    entry: Entry
    bops: float
    quality: Cell

    @property
    def value(self) -> float:
        assert self.quality.value is not None
        return self.quality.value


def pareto(material: Material) -> Found:
    """A figure for each section in which cost and metric are known."""
    drawings, notes = [], []
    for section in material.sections:
        nets = _nets(section)
        costs = {net.bops for net in nets}
        if len(costs) == 1:
            notes.append(f"pareto: all nets of {section.title} cost the same, so there is no trade to draw.")
        if len(costs) > 1:
            with styled():
                drawing, left_out = _drawing(section, nets)
            drawings.append(drawing)
            if left_out:
                notes.append(f"{drawing.name}: {left_out} labels are left out for want of room.")
    return drawings, notes


def _nets(section: Section) -> list[Net]:
    found = []
    for entry in entries_of(section.lines, share_plain=True):
        cost, quality = over_seeds(entry.seeds, "cost.bops"), over_seeds(entry.seeds, "metric.deployed")
        if cost.value is not None and cost.value >= 1 and quality.value is not None:
            found.append(Net(entry, cost.value, quality))
    sign = -1 if section.metric.higher_is_better else 1
    return sorted(found, key=lambda net: (net.bops, sign * net.value, net.entry.texts_of_net))


def _drawing(section: Section, nets: list[Net]) -> tuple[Drawing, int]:
    sign = 1 if section.metric.higher_is_better else -1
    on_front = pareto_front([(net.bops, sign * net.value) for net in nets])
    front = [net for net, best in zip(nets, on_front, strict=True) if best]
    modes = sorted({net.entry.mode for net in nets}, key=mode_order)
    figure, [[axes]] = panels(1, 1, (WIDTH, 3.0), top=HEAD * HEADS + 0.1 + key_rows(len(modes)), right=0.3)
    steps = [(net.bops, net.value) for net in front]
    axes.plot([x for x, _ in steps], [y for _, y in steps], color=GREY, linewidth=0.8, drawstyle="steps-post", zorder=1)
    values = [net.value for net in nets]
    low = min(collapsed_below(values), *(net.value for net in front)) if sign > 0 else min(values)
    margin = 0.08 * (max(values) - low) or 0.5
    axes.set_ylim(low - margin, max(values) + margin)
    keep_to_percent(axes, section.unit)
    for net in nets:
        mark = mode_named(net.entry.mode).mark
        face = mark.colour if net in front else "white"
        shown = max(net.value, axes.get_ylim()[0])
        axes.plot(
            [net.bops], [shown], mark.marker, color=mark.colour, markerfacecolor=face, markersize=5, zorder=3,
            clip_on=False,
        )  # fmt: skip
    log_axis(axes, "x", short, [net.bops for net in nets], room=0.12)
    axes.set_xlabel("bit operations for one image")
    axes.set_ylabel(plain(f"{section.data}: {metric_label(section)}"))
    key(figure, [(mode_handle(mode, "none"), mode_named(mode).title) for mode in modes])
    name = stem("pareto", section.data, section.metric.name, section.metric.split)
    labels = _labels(nets, front, section, axes.get_ylim()[0])
    points = [(net.bops, max(net.value, axes.get_ylim()[0])) for net in nets]
    missing = annotate(axes, labels, points + _along(steps)) + _head(figure, axes, nets)
    caption = (
        f"{section.title} of deployed nets against bit operations, means over seeds. Filled: no other net is better "
        f"in one without being worse in the other ({len(front)} of {len(nets)}). Arrows: values below the axis."
    )
    return Drawing(name, f"Bit operations and {section.metric.name}: {section.data}", caption, figure), missing


def _labels(nets: list[Net], front: list[Net], section: Section, bottom: float) -> list[Label]:
    """Block and mode of the nets on the front, values below the axis, and the blocks of others where there is room."""
    at: dict[tuple[float, float], list[Net]] = defaultdict(list)
    for net in front:
        at[net.bops, net.value].append(net)
    labels = [
        Label(bops, value, _name(alike[-1]) + (f" (and {len(alike) - 1} alike)" if alike[1:] else ""), bold=True)
        for (bops, value), alike in reversed(at.items())
    ]
    others = [net for net in nets if (net.bops, net.value) not in at]
    lowest = [net for net in others if net.value < bottom]
    labels += [Label(net.bops, bottom, f"{_block(net)} {section.form(net.value)} ↓", GREY) for net in lowest]
    names = [(net, _block(net)) for net in others if len(nets) <= CROWD and net not in lowest]
    return labels + [Label(net.bops, net.value, name, GREY, farthest=NEAR) for net, name in names if name]


def _name(net: Net) -> str:
    _, rep, _, mode, variant = net.entry.texts_of_net
    return " ".join(word for word in (rep if rep != "none" else "", mode, f"({variant})" if variant else "") if word)


def _block(net: Net) -> str:
    _, rep, _, _, variant = net.entry.texts_of_net
    return ", ".join(word for word in (rep if rep != "none" else "", variant) if word)


def _head(figure: Figure, axes: Axes, nets: list[Net]) -> int:
    """Models and bits above the nets that cost the same; how many are left out."""
    columns: dict[float, list[str]] = defaultdict(list)
    for net in nets:
        columns[net.bops].append(f"{net.entry.line.model}, {bits_label(net.entry.bits)}")
    for bops in columns:
        axes.axvline(bops, color=PALE, linewidth=0.6, zorder=0)
    names = [(bops, " or ".join(dict.fromkeys(found))) for bops, found in columns.items()]
    used, left_out = head(axes, names, HEADS)
    lower_top(figure, HEAD * (HEADS - used))
    return left_out


def _along(steps: list[tuple[float, float]], parts: int = 12) -> list[tuple[float, float]]:
    """Points on the line of the front, which labels have to leave free."""
    found = []
    for (x, y), (next_x, next_y) in zip(steps, steps[1:], strict=False):
        ratio = next_x / x
        found += [(x * ratio ** (part / parts), y) for part in range(parts + 1)]
        found += [(next_x, y + (next_y - y) * part / parts) for part in range(parts + 1)]
    return found
