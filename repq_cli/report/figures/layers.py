"""A figure of a diagnosis: noise and harm, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from repq_cli.report.diagnosis import by_harm, gain, gap_unit, shortened
from repq_cli.report.figures.drawing import Drawing
from repq_cli.report.figures.style import SMALL, WIDE, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Numbers = dict[str, Any]

WEIGHTS, INPUTS, LOST, GAINED = "#0072b2", "#e69f00", "#d55e00", "#009e73"  # of Okabe and Ito, apart in grey as well
LINE = 0.24  # inches for a layer


def layer_figure(diagnosis: Numbers) -> Drawing:
    """A line for each layer in the network's order, the one that hurts most in bold.

    The signal-to-quantization-noise ratio of its weights and its input, what is lost with only this layer quantized,
    and what is gained with only this one float.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    layers = diagnosis["layers"]
    count = len(layers)
    with styled():
        top, bottom, width = 0.5, 0.42, WIDE
        height = top + bottom + LINE * count
        figure = Figure(figsize=(width, height))
        FigureCanvasAgg(figure)
        box = (bottom / height, LINE * count / height)
        noise = figure.add_axes((0.2, box[0], 0.34, box[1]))
        alone = figure.add_axes((0.585, box[0], 0.185, box[1]), sharey=noise)
        spared = figure.add_axes((0.81, box[0], 0.185, box[1]), sharey=noise)
        _noise_bars(noise, layers)
        noise.set_yticks(range(count), [shortened(layer["name"]) for layer in layers])
        noise.set_ylim(count - 0.4, -0.6)
        worst = layers.index(by_harm(diagnosis)[0])
        noise.get_yticklabels()[worst].set_fontweight("bold")
        noise.set_title("Weights (filled) and input (hatched)")
        noise.set_xlabel("signal to quantization noise, dB")
        metric, unit = diagnosis["metric"]["name"], gap_unit(diagnosis)
        _change_bars(alone, [layer["alone"]["drop"] for layer in layers], LOST)
        alone.set_title("Only this layer quantized")
        alone.set_xlabel(f"{metric} lost, {unit}")
        _change_bars(spared, [gain(diagnosis, layer) for layer in layers], GAINED)
        spared.set_title("Only this layer float")
        spared.set_xlabel(f"{metric} gained, {unit}")
        figure.text(0.01, 1 - 0.12 / height, _heading(diagnosis), ha="left", va="center", fontsize=8)
        for axes in (noise, alone, spared):
            axes.grid(False)
    caption = "Noise of each layer's weights and input, and the metric with only this layer quantized or only it float."
    return Drawing("layers", _heading(diagnosis), caption, figure)


def _heading(diagnosis: Numbers) -> str:
    quant, data = diagnosis["quant"], diagnosis["data"]
    return (
        f"{diagnosis['model']}, rep {diagnosis['rep']}, mode {diagnosis['mode']}, w{quant['weight_bits']}"
        f"a{quant['act_bits']}, {data['name']}, {data['images']} validation image{'s' * (data['images'] > 1)}"
    )


def _noise_bars(axes: Axes, layers: Sequence[Numbers]) -> None:
    """Two bars a layer, each with its number at its end, or the word for what has no noise or no codes."""
    pairs: Sequence[tuple[float, str, dict[str, Any]]] = (
        (-0.19, "weights", {"color": WEIGHTS}),
        (0.19, "input", {"color": INPUTS, "hatch": "//////"}),
    )
    values = [found["sqnr"] or 0 for layer in layers for key in ("weights", "input") if (found := layer.get(key))]
    axes.set_xlim(min([0, *values]), 1.12 * max([1, *values]))
    axes.axvline(0, color="black", linewidth=0.6)
    for index, layer in enumerate(layers):
        for offset, key, look in pairs:
            found = layer.get(key)
            value = found["sqnr"] if found else None
            word = f"{value:.0f}" if value is not None else "exact" if found else "float"
            axes.barh(index + offset, value or 0, 0.34, edgecolor="white", linewidth=0.3, **look)
            axes.annotate(
                word, (max(value or 0, 0), index + offset), (2, 0), textcoords="offset points", va="center_baseline",
                fontsize=5.5,
            )  # fmt: skip


def _change_bars(axes: Axes, changes: Sequence[float], colour: str) -> None:
    """One bar a layer, to the left where it is negative."""
    low, high = min([0.0, *changes]), max([0.0, *changes])
    axes.tick_params(labelleft=False, left=False)
    axes.spines["left"].set_visible(False)  # the line at zero is enough
    room = 0.36 * ((high - low) or 1)
    axes.set_xlim(low - (room if low < 0 else 0), high + room)
    axes.axvline(0, color="black", linewidth=0.6)
    axes.barh(range(len(changes)), changes, 0.6, color=colour)
    for index, change in enumerate(changes):
        shown = round(change, 2) or 0.0
        axes.annotate(
            f"{shown:.2f}".replace("-", "−"), (change, index), (-2 if change < 0 else 2, 0), textcoords="offset points",
            ha="right" if change < 0 else "left", va="center_baseline", fontsize=SMALL,
        )  # fmt: skip
