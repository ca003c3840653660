"""Labels beside points: placed in a fixed order, so that none covers a point or another label."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from repq_cli.report.figures.style import SMALL, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation

DISTANCES = (5.0, 9.0, 15.0, 24.0, 36.0)  # points from the middle of the marker to the label
DIRECTIONS = ((1, 0), (0, 1), (0, -1), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1))
LED = 9.0  # from this distance on, a thin line leads from the point to its label


class Box(NamedTuple):
    """A rectangle, in points."""

    left: float
    bottom: float
    right: float
    top: float

    def overlaps(self, other: Box) -> bool:
        """Whether the two share some area."""
        return (
            self.left < other.right and other.left < self.right and self.bottom < other.top and other.bottom < self.top
        )

    def holds(self, other: Box) -> bool:
        """Whether ``other`` lies inside."""
        return (
            self.left <= other.left
            and self.bottom <= other.bottom
            and self.right >= other.right
            and self.top >= other.top
        )


class Label(NamedTuple):
    """A text for the point (x, y), in the units of the data; left out rather than put ``farthest`` points away."""

    x: float
    y: float
    text: str
    colour: str = "#333333"
    bold: bool = False
    farthest: float = DISTANCES[-1]


class Place(NamedTuple):
    """Where a label stands, and how far from its point."""

    box: Box
    distance: float


def square_about(x: float, y: float, radius: float) -> Box:
    """The square about a point."""
    return Box(x - radius, y - radius, x + radius, y + radius)


def place(
    anchors: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    taken: Iterable[Box],
    frame: Box,
    farthest: Sequence[float] | None = None,
) -> list[Place | None]:
    """A place for each label, near first, inside ``frame`` and clear of all that is ``taken``; None for want of one.

    >>> [found and found.box for found in place([(0, 0), (0, 0)], [(10, 4)] * 2, [], Box(-5, -9, 16, 9))]
    [Box(left=5.0, bottom=-2.0, right=15.0, top=2.0), Box(left=-5.0, bottom=5.0, right=5.0, top=9.0)]
    """
    occupied = list(taken)
    found: list[Place | None] = []
    limits = farthest or [DISTANCES[-1]] * len(anchors)
    for (x, y), (width, height), limit in zip(anchors, sizes, limits, strict=True):
        candidates = (
            Place(_beside(x, y, width, height, across * distance, up * distance), distance)
            for distance in DISTANCES
            if distance <= limit
            for across, up in DIRECTIONS
        )
        chosen = next(
            (
                candidate
                for candidate in candidates
                if frame.holds(candidate.box) and not any(candidate.box.overlaps(box) for box in occupied)
            ),
            None,
        )
        if chosen is not None:
            occupied.append(chosen.box)
        found.append(chosen)
    return found


def _beside(x: float, y: float, width: float, height: float, across: float, up: float) -> Box:
    left = x + across - (width if across < 0 else 0 if across > 0 else width / 2)
    bottom = y + up - (height if up < 0 else 0 if up > 0 else height / 2)
    return Box(left, bottom, left + width, bottom + height)


def annotate(
    axes: Axes, labels: Sequence[Label], points: Iterable[tuple[float, float]], radius: float = 2.5, beside: float = 0.0
) -> int:
    """Write ``labels`` beside their points, the first ones nearest; how many had to be left out.

    points: all that labels must not cover, in the units of the data. The limits of ``axes`` have to be set.
    beside: inches to the right of the axes that labels may use.
    """
    page = _Page(axes)
    texts = [_written(axes, label) for label in labels]
    anchors = [page.at(label.x, label.y) for label in labels]
    taken = [square_about(*page.at(*point), radius) for point in points]
    frame = page.frame._replace(right=page.frame.right + 72 * beside)
    places = place(anchors, [page.size(text) for text in texts], taken, frame, [own.farthest for own in labels])
    for text, (x, y), spot in zip(texts, anchors, places, strict=True):
        if spot is None:
            text.remove()
            continue
        text.set_position((spot.box.left - x, spot.box.bottom - y))
        if spot.distance < LED and text.arrow_patch is not None:
            text.arrow_patch.set_visible(False)
    return places.count(None)


def head(axes: Axes, names: Sequence[tuple[float, str]], rows: int) -> tuple[int, int]:
    """Write names above the axes, each over its x, in at most ``rows``; rows used, and how many are left out."""
    page = _Page(axes)
    ends = [0.0] * rows
    left_out = 0
    for x, name in sorted(names):
        text = _written(axes, Label(x, axes.get_ylim()[1], name, "#333333"))
        width, height = page.size(text)
        left = min(max(page.at(x, 1)[0] - width / 2, 3.0), page.width - width - 3)
        row = next((row for row in range(rows) if ends[row] <= left), None)
        if row is None or left < 0:
            text.remove()
            left_out += 1
            continue
        ends[row] = left + width + 4
        text.set_position((left - page.at(x, 1)[0], 2 + row * (height + 1)))
        if text.arrow_patch is not None:
            text.arrow_patch.set_visible(False)
    return sum(end > 0 for end in ends), left_out


def _written(axes: Axes, label: Label) -> Annotation:
    return axes.annotate(
        plain(label.text), (label.x, label.y), xytext=(0, 0), textcoords="offset points", fontsize=SMALL,
        color=label.colour, fontweight="bold" if label.bold else "normal", ha="left", va="bottom", zorder=5,
        arrowprops={"arrowstyle": "-", "linewidth": 0.4, "color": "#9a9a9a", "shrinkA": 0, "shrinkB": 2.5},
    )  # fmt: skip


class _Page:
    """Measures of a figure in points."""

    def __init__(self, axes: Axes) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = axes.get_figure()
        assert isinstance(figure, Figure) and isinstance(figure.canvas, FigureCanvasAgg)
        self.axes, self.renderer, self.scale = axes, figure.canvas.get_renderer(), 72 / figure.dpi
        self.width = figure.get_figwidth() * 72
        edge = axes.get_window_extent(self.renderer)
        self.frame = Box(*(value * self.scale for value in (edge.x0, edge.y0, edge.x1, edge.y1)))

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where (x, y) of the data is."""
        across, up = self.axes.transData.transform((x, y))
        return across * self.scale, up * self.scale

    def size(self, text: Annotation) -> tuple[float, float]:
        """Width and height."""
        extent = text.get_window_extent(self.renderer)
        return extent.width * self.scale, extent.height * self.scale
