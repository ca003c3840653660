"""Weights of branches, of the merged kernel, and of its integers, in units of the output channel's step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repq_cli.report.figures.drawing import Drawing
from repq_cli.report.figures.material import Found, Material, run_title, telling_runs
from repq_cli.report.figures.reading import number, read_json
from repq_cli.report.figures.style import COLOURS, LINES, PALE, panels, plain, stem, styled
from repq_cli.report.runs import Run, bits_label
from repq_cli.runs.folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GRID = 33  # levels up to which each is drawn as a line
BINS = 96  # drawn at most
NARROWEST = 1e-6  # bin, in steps
LEAST = 1e-5  # share of weights at which the axes begin
MOST_BRANCHES = 7


@dataclass(frozen=True)
class Layer:
    """Histograms of one layer: shares of its weights for each step of width.

    edges: of the bins, in steps. codes: the share of each integer from ``low`` to ``high``. count: of all weights.
    """

    name: str
    bits: int
    low: int
    high: int
    edges: tuple[float, ...]
    branches: Mapping[str, tuple[float, ...]]
    merged: tuple[float, ...]
    codes: tuple[float, ...]
    count: float

    @property
    def bins(self) -> int:
        """How many to draw: with more of them, chance would be all there is to see."""
        return round(min(BINS, max(12.0, 2 * abs(self.count) ** 0.5)))

    @property
    def range_ratio(self) -> float:
        """How far the widest branch reaches, relative to the narrowest one."""
        spans = [_reach(self.edges, shares) for shares in self.branches.values()]
        positive = [span for span in spans if span > 0]
        return max(positive) / min(positive) if positive else 0.0


def weights(material: Material) -> Found:
    """A figure for each run, or for a few where there are many."""
    notes: list[str] = []
    runs, said = telling_runs(material.runs, lambda run: RunFolder(run.folder).weights_file.is_file(), "weights")
    drawings = []
    for run in runs:
        layers = _layers(RunFolder(run.folder).weights_file, notes)
        if layers:
            with styled():
                drawings.append(_drawing(run, _telling(layers)))
    return drawings, said + notes


def _layers(file: Path, notes: list[str]) -> list[Layer]:
    content = read_json(file, notes)
    if content is None:
        return []
    listed = content.get("layers")
    read = [_layer(item) for item in listed] if isinstance(listed, list) else []
    layers = [layer for layer in read if layer is not None]
    if len(layers) < len(read) or not isinstance(listed, list):
        notes.append(f"{file}: {len(read) - len(layers)} of {len(read)} layers are not what a run writes.")
    return layers


def _layer(item: Any) -> Layer | None:
    """The layer, or None where numbers are missing or do not fit together."""
    if not isinstance(item, dict):
        return None
    name, low, high, bits = (item.get(key) for key in ("name", "low", "high", "bits"))
    edges, merged, codes = (_numbers(item.get(key)) for key in ("edges", "merged", "codes"))
    branches = item.get("branches")
    if not (isinstance(name, str) and isinstance(low, int) and isinstance(high, int) and isinstance(bits, int)):
        return None
    if edges is None or merged is None or codes is None or not isinstance(branches, dict):
        return None
    rising = all(first + NARROWEST < second for first, second in zip(edges, edges[1:], strict=False))
    if (
        not rising
        or abs(low) > 2**31
        or not merged
        or len(merged) != len(edges) - 1
        or not low <= high
        or len(codes) != high - low + 1
    ):
        return None
    found = {str(key): _numbers(counts) for key, counts in branches.items()}
    fitting = {key: _density(edges, c) for key, c in found.items() if c is not None and len(c) == len(merged)}
    grid = [level - 0.5 for level in range(low, high + 2)]
    return Layer(name, bits, low, high, edges, fitting, _density(edges, merged), _density(grid, codes), sum(merged))


def _numbers(values: Any) -> tuple[float, ...] | None:
    found = [number(value) for value in values] if isinstance(values, list) and len(values) < 10**5 else [None]
    usable = [value for value in found if value is not None]
    return tuple(usable) if len(usable) == len(found) else None


def _density(edges: Sequence[float], counts: Sequence[float]) -> tuple[float, ...]:
    """Shares of all weights for a step of width, comparable with the shares of integers."""
    total = sum(counts) or 1.0
    return tuple(count / total / (end - start) for count, start, end in zip(counts, edges, edges[1:], strict=False))


def _reach(edges: Sequence[float], shares: Sequence[float]) -> float:
    """The largest distance from 0 at which there is a weight."""
    sides = [max(abs(edges[i]), abs(edges[i + 1])) for i, share in enumerate(shares) if share > 0]
    return max(sides, default=0.0)


def _telling(layers: Sequence[Layer]) -> list[Layer]:
    """The first, the one whose branches differ most in range, and the last."""
    widest = max(range(len(layers)), key=lambda index: (layers[index].range_ratio, -index))
    return [layers[index] for index in sorted({0, widest, len(layers) - 1})]


def _drawing(run: Run, layers: Sequence[Layer]) -> Drawing:
    figure, grid = panels(len(layers), 2, (2.85, 1.45), left=0.75, gap_x=0.3, gap_y=0.5, top=0.42)
    for row, layer in zip(grid, layers, strict=True):
        reach = [_reach(layer.edges, shares) for shares in (*layer.branches.values(), layer.merged)]
        limit = max([*reach, layer.high + 1.0, 1.0 - layer.low]) * 1.05
        _branches(row[0], layer)
        _quantized(row[1], layer)
        for axes in row:
            axes.set_xlim(-limit, limit)
            axes.set_yscale("log")
            axes.set_ylim(LEAST, 10)
            axes.set_yticks([1e-4, 1e-2, 1], ["0.01 %", "1 %", "100 %"])
            axes.minorticks_off()
            axes.set_xlabel("weight, in steps of its output channel" if row is grid[-1] else "")
        row[0].set_ylabel("share of weights per step")
        row[1].tick_params(labelleft=False)
    figure.text(0.01, 0.99, plain(run_title(run), 90), va="top", fontweight="bold")
    caption = (
        f"{run_title(run)}: weights of the branches, and of the merged kernel (line) with the integers that it is "
        f"rounded to (bars), of the first layer, the one whose branches differ most in range, and the last one."
    )
    name = stem(
        "weights", run.model, run.rep, run.mode, bits_label(run.bits), "" if run.seed is None else str(run.seed)
    )
    return Drawing(name, "Weights", caption, figure)


def _branches(axes: Axes, layer: Layer) -> None:
    shown = list(layer.branches.items())[:MOST_BRANCHES]
    handles = []
    for index, (_, shares) in enumerate(shown):
        colour, line = COLOURS[index % len(COLOURS)], LINES[index % len(LINES)]
        handles.append(_outline(axes, layer, shares, colour, line))
    axes.set_title(plain(f"{layer.name}: {'branches' if shown else 'no branches'}"))
    if not shown:
        axes.set_axis_off()
    else:
        axes.legend(
            handles,
            [f" {plain(name, 16)}" for name, _ in shown],
            loc="upper right",
            handlelength=1.6,
            frameon=True,
            edgecolor="none",
            fontsize=6,
        )


def _quantized(axes: Axes, layer: Layer) -> None:
    levels = range(layer.low, layer.high + 1)
    grid = [level - 0.5 for level in (*levels, layer.high + 1)]
    if len(levels) <= GRID:
        for level in levels:
            axes.axvline(level, color=PALE, linewidth=0.5, zorder=0)
    else:
        axes.axvspan(grid[0], grid[-1], color="#f4f4f4", zorder=0)
    starts, shares = _joined(grid, layer.codes, BINS if len(levels) <= GRID else layer.bins)
    width = starts[1] - starts[0]
    shown = [(start + width / 2, share) for start, share in zip(starts, shares, strict=False) if share > 0]
    axes.bar(
        [middle for middle, _ in shown], [share for _, share in shown], width * (0.7 if len(levels) <= GRID else 1.0),
        color="#9ecae1", edgecolor="#0072b2", linewidth=0.4, zorder=1,
    )  # fmt: skip
    _outline(axes, layer, layer.merged, "black", "solid")
    axes.grid(False, axis="x")
    axes.set_title(plain(f"{layer.name}: merged, {layer.bits} bit ({layer.low} to {layer.high})"))


def _outline(axes: Axes, layer: Layer, shares: Sequence[float], colour: str, line: Any) -> Any:
    starts, joined = _joined(layer.edges, shares, layer.bins)
    heights = [max(share, LEAST / 10) for share in joined]
    (drawn,) = axes.plot(
        starts, [*heights, heights[-1]], color=colour, linestyle=line, linewidth=0.9, drawstyle="steps-post", zorder=2
    )
    return drawn


def _joined(edges: Sequence[float], shares: Sequence[float], bins: int) -> tuple[list[float], list[float]]:
    """At most so many bins: those that are joined have the mean of their densities.

    >>> _joined([0, 1, 2], [0.5, 0.25], 2)
    ([0, 1, 2], [0.5, 0.25])
    """
    stride = -(-len(shares) // bins)
    groups = [range(start, min(start + stride, len(shares))) for start in range(0, len(shares), stride)]
    masses = [sum(shares[i] * (edges[i + 1] - edges[i]) for i in group) for group in groups]
    ends = [edges[group.start] for group in groups] + [edges[-1]]
    return ends, [mass / (end - start) for mass, start, end in zip(masses, ends, ends[1:], strict=False)]
