"""How all figures look: sizes of a paper's column, and one colour, marker and line for each mode."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from repq_cli.modes.catalogue import mode_named

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.ft2font import FT2Font
    from matplotlib.lines import Line2D

FONT = "DejaVu Sans"  # comes with matplotlib, so that figures are the same everywhere
GREY = "#6e6e6e"
PALE = "#d9d9d9"
SMALL = 6.5  # points: labels in a figure
WIDE = 7.0  # inches: both columns of a paper
LONGEST = 44  # characters of a name

PARAMETERS: dict[str, Any] = {
    "font.family": FONT,
    "font.size": 7.5,
    "axes.titlesize": 7.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 7.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": "#ececec",
    "grid.linewidth": 0.6,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.2,
    "errorbar.capsize": 1.5,
    "text.parse_math": False,  # names may hold any sign
    "svg.fonttype": "path",
}


LINES: tuple[Any, ...] = ("solid", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1.2, 1, 1.2)))
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4d4d4d")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


@contextmanager
def styled(salt: str = "") -> Iterator[None]:
    """Matplotlib's own settings and ours, whatever the user's are, until the end of the block."""
    from matplotlib import style

    with style.context(["default", {**PARAMETERS, "svg.hashsalt": salt}]):
        yield


def panels(
    rows: int, columns: int, size: tuple[float, float], left: float = 0.55, top: float = 0.25, **more: float
) -> tuple[Figure, list[list[Axes]]]:
    """A figure of ``rows x columns`` axes, ``size`` inches each, with margins in inches: fixed, so that nothing moves.

    more: ``right``, ``bottom``, and ``gap_x`` and ``gap_y`` between axes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    right, bottom = more.get("right", 0.1), more.get("bottom", 0.4)
    gap_x, gap_y = more.get("gap_x", 0.45), more.get("gap_y", 0.5)
    width = left + columns * size[0] + (columns - 1) * gap_x + right
    height = bottom + rows * size[1] + (rows - 1) * gap_y + top
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    axes = [
        [
            figure.add_axes((
                (left + column * (size[0] + gap_x)) / width,
                (bottom + (rows - 1 - row) * (size[1] + gap_y)) / height,
                size[0] / width,
                size[1] / height,
            ))
            for column in range(columns)
        ]
        for row in range(rows)
    ]  # fmt: skip
    return figure, axes


def lower_top(figure: Figure, inches: float) -> None:
    """Take ``inches`` away from the upper edge."""
    height = figure.get_figheight()
    ratio = height / (height - inches)
    boxes = [axes.get_position() for axes in figure.axes]
    figure.set_figheight(height - inches)
    for axes, box in zip(figure.axes, boxes, strict=True):
        axes.set_position((box.x0, box.y0 * ratio, box.width, box.height * ratio))


def keep_to_percent(axes: Axes, unit: str) -> None:
    """No room for more than 100 % or less than 0, where spreads may reach."""
    low, high = axes.get_ylim()
    if unit == "%" and low < 100 and high > 0:
        room = 0.04 * (high - low)
        axes.set_ylim(max(low, -room), min(high, 100 + room))


def key(figure: Figure, entries: Sequence[tuple[Line2D, str]], columns: int = 8) -> None:
    """A legend along the figure's upper edge."""
    if entries:
        handles = [handle for handle, _ in entries]
        names = [f" {plain(name)}" for _, name in entries]  # matplotlib leaves out names that begin with _
        figure.legend(
            handles, names, loc="upper center", ncols=min(columns, len(names)), borderaxespad=0.2, columnspacing=1.4,
            handlelength=2.6, handletextpad=0.3,
        )  # fmt: skip


def key_rows(entries: int, columns: int = 8) -> float:
    """Inches that ``key`` takes."""
    return 0.16 * math.ceil(entries / columns) + 0.06 if entries else 0.0


def mode_handle(mode: str, line: Any = None) -> Line2D:
    """An entry of a legend."""
    from matplotlib.lines import Line2D

    mark = mode_named(mode).mark
    return Line2D([], [], color=mark.colour, marker=mark.marker, linestyle=line or mark.line)


def line_handle(line: Any, colour: str = GREY, width: float = 1.2) -> Line2D:
    """An entry of a legend without a marker."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, linestyle=line, linewidth=width)


def plain(text: str, limit: int = LONGEST) -> str:
    """``text`` in a line of characters that the font has, cut to ``limit`` in its middle: names differ at the ends."""
    font = _font()
    kept = "".join(
        sign if sign.isprintable() and font.get_char_index(ord(sign)) else " " if sign.isspace() else "□"
        for sign in text
    )
    kept = " ".join(kept.split())
    return kept if len(kept) <= limit else f"{kept[: limit // 2]}…{kept[len(kept) - (limit - 1) // 2 :]}"


@cache
def _font() -> FT2Font:
    from matplotlib.font_manager import findfont, get_font

    return get_font(findfont(FONT))


def stem(*words: str) -> str:
    """A name for files and ids.

    >>> stem("pareto", "digits", "top1 <&> test/1")
    'pareto-digits-top1-test-1'
    """
    return re.sub("[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")[:80].strip("-")


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between two positive ones: at most seven, denser where the two are close.

    >>> log_ticks(0.9, 12)
    [1.0, 2.0, 5.0, 10.0]
    >>> log_ticks(1, 1e9)
    [1.0, 100.0, 10000.0, 1000000.0, 100000000.0]
    >>> log_ticks(12, 60)
    [15.0, 20.0, 30.0, 40.0, 50.0]
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    choices: list[tuple[tuple[float, ...], int]] = [((1, 1.5, 2, 3, 4, 5, 7), 1), ((1, 2, 5), 1)]
    for factors, stride in (*choices, *(((1,), stride) for stride in (1, 2, 3, 5, 10, 20, 50))):
        powers = range(first - first % stride, last + 1, stride)
        ticks = [float(f"{factor}e{power}") for power in powers for factor in factors]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) <= 7:
            break
    return inside


def log_axis(
    axes: Axes, name: Literal["x", "y"], form: Callable[[float], str], values: Sequence[float], room: float = 0.08
) -> None:
    """A logarithmic axis around positive ``values``, ticks written by ``form``; ``room`` at either end, as a share."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    low, high = math.log10(min(values)), math.log10(max(values))
    margin = max(room * (high - low), 0.03)
    limits = (10 ** (low - margin), 10 ** (high + margin))
    if name == "x":
        axes.set_xscale("log")
        axes.set_xlim(*limits)
    else:
        axes.set_yscale("log")
        axes.set_ylim(*limits)
    ticks = log_ticks(*limits)
    if len(ticks) < 2:  # a narrow axis: its ends and its middle
        ticks = sorted(
            {float(f"{value:.2g}") for value in (min(values), math.sqrt(min(values) * max(values)), max(values))}
        )
    axis: Axis = axes.xaxis if name == "x" else axes.yaxis
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FixedFormatter([form(tick) for tick in ticks]))
    axis.set_minor_locator(NullLocator())
