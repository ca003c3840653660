"""Milliseconds for an image: every net in every engine of one bench, batch by batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from repq_cli.modes.catalogue import mode_named
from repq_cli.report.figures.drawing import Drawing
from repq_cli.report.figures.material import Found, Material
from repq_cli.report.figures.reading import Bench, Timing
from repq_cli.report.figures.style import GREY, WIDE, log_axis, panels, plain, stem, styled
from repq_cli.report.runs import Bits, bits_label
from repq_cli.text import milliseconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NETS = {"multi-branch": "#bdbdbd", "unfolded": "#bdbdbd", "merged": "#6e6e6e", "int8": "#0072b2", "binary": "#e69f00"}
ENGINES = {"torch": "PyTorch", "onnxruntime": "ONNX Runtime", "xnor": "XNOR"}
HATCHES = {"torch": "", "onnxruntime": "////", "xnor": "...."}
REFERENCE = ("merged", "onnxruntime")
FACTOR = 40  # between times from which on their axis is logarithmic
BATCHES = 3  # panels beside each other
NETS_OF_A_FIGURE = 6

Bar = tuple[str, str]  # net and engine
Key = tuple[str, tuple[int, ...], str]  # run, shape of images, and the network in words


def speed(material: Material) -> Found:
    """A figure for each bench; several if it holds many nets."""
    drawings, notes = [], []
    for bench in material.benches:
        batches = sorted({timing.batch for timing in bench.timings})
        if len(batches) > BATCHES:
            left_out = ", ".join(map(str, batches[BATCHES:]))
            notes.append(f"speed: of {bench.path}, batch {left_out} is left out for want of room.")
        names = names_of(bench.timings)
        shown = list(names)
        if any(not _reference(bench.timings, timing) for timing in bench.timings):
            notes.append(
                f"speed: {bench.path} does not hold the merged net in ONNX Runtime for all, so some bars lack a ratio."
            )
        for start in range(0, len(shown), NETS_OF_A_FIGURE):
            own = {key: names[key] for key in shown[start : start + NETS_OF_A_FIGURE]}
            with styled():
                drawings.append(_drawing(bench, own, batches[:BATCHES]))
    return drawings, notes


def net_name(timing: Timing) -> str:
    """The network that was timed, in words."""
    width = "" if timing.width in (None, 1.0) else f" ×{timing.width:g}"
    bits = bits_label(Bits(*timing.bits)) if timing.bits else ""
    words = (f"{timing.model}{width}", timing.rep, mode_named(timing.mode).title, bits)
    return ", ".join(word for word in words if word)


def names_of(timings: Sequence[Timing]) -> dict[Key, str]:
    """The networks of a bench; those that words alone do not tell apart with their images' shape or their run."""
    alike: dict[str, list[tuple[str, tuple[int, ...]]]] = defaultdict(list)
    for run, shape, name in dict.fromkeys(map(_key, timings)):
        alike[name].append((run, shape))
    names: dict[Key, str] = {}
    for name, keys in alike.items():
        runs, shapes = {run for run, _ in keys}, {shape for _, shape in keys}
        folders = {Path(run).name for run in runs}
        for run, shape in keys:
            told = [shape_label(shape)] if len(shapes) > 1 else []
            told += [Path(run).name if len(folders) == len(runs) else run] if len(runs) > 1 else []
            names[run, shape, name] = ", ".join(word for word in (*told, name) if word)
    return names


def _key(timing: Timing) -> Key:
    return timing.run, timing.shape, net_name(timing)


def shape_label(shape: Sequence[int]) -> str:
    """``3×224×224``."""
    return "×".join(map(str, shape))


def kind_name(net: str, engine: str) -> str:
    """A net in an engine, in words."""
    return f"{net}, {ENGINES.get(engine, engine)}"


def _order(kind: Bar) -> tuple[object, ...]:
    net, engine = kind
    nets, engines = list(NETS), list(ENGINES)
    return (
        nets.index(net) if net in NETS else len(nets),
        engines.index(engine) if engine in ENGINES else len(engines),
        kind,
    )


def _reference(timings: Sequence[Timing], own: Timing) -> Timing | None:
    alike = (
        timing for timing in timings if (timing.run, timing.shape, timing.batch) == (own.run, own.shape, own.batch)
    )
    return next((timing for timing in alike if (timing.net, timing.engine) == REFERENCE), None)


def _drawing(bench: Bench, names: Mapping[Key, str], batches: Sequence[int]) -> Drawing:
    named = [(names[key], timing) for timing in bench.timings if (key := _key(timing)) in names]
    bars = {name: sorted({(t.net, t.engine) for own, t in named if own == name}, key=_order) for name in names.values()}
    rows = sum(len(own) + 1.4 for own in bars.values())
    left = 1.45
    width = (WIDE - left - 0.45 - 0.55 * (len(batches) - 1)) / max(len(batches), 2)
    figure, [axes_of_batches] = panels(
        1, len(batches), (width, 0.16 * rows), left=left, right=0.45, gap_x=0.55, top=0.22
    )
    for axes, batch in zip(axes_of_batches, batches, strict=True):
        own = {(name, t.net, t.engine): t for name, t in named if t.batch == batch}
        _panel(axes, bars, own, bench.timings)
        axes.set_title(f"batch {batch}")
        scale = " (logarithmic)" if axes.get_xscale() == "log" else ""
        axes.set_xlabel(f"milliseconds for an image{scale}")
        if axes is not axes_of_batches[0]:
            axes.tick_params(labelleft=False)
    caption = (
        f"Median time for an image with its quartiles{', ' + bench.machine if bench.machine else ''}. In "
        f"parentheses: how many times as fast as the merged net in float in ONNX Runtime."
    )
    return Drawing(stem("speed", Path(bench.path).parent.name), "Speed of inference", caption, figure)


def _panel(
    axes: Axes, bars: dict[str, list[Bar]], own: dict[tuple[str, str, str], Timing], every: Sequence[Timing]
) -> None:
    position, ticks = 0.0, []
    longest = max((min(timing.high, 1.5 * timing.milliseconds) for timing in own.values()), default=1.0)
    shortest = min((timing.milliseconds for timing in own.values()), default=1.0)
    if longest > FACTOR * shortest:
        log_axis(axes, "x", "{:g}".format, [shortest / 3, longest * (longest / shortest) ** 0.35], room=0)
    else:
        axes.set_xlim(0, longest * 1.3)
    for name, kinds in bars.items():
        axes.text(
            0,
            position,
            f" {plain(name)}",
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=6.5,
            fontweight="bold",
        )
        position += 1
        for net, engine in kinds:
            timing = own.get((name, net, engine))
            if timing is not None:
                _bar(axes, position, timing, _reference(every, timing), longest)
            ticks.append((position, kind_name(net, engine)))
            position += 1
        position += 0.4
    axes.set_yticks([at for at, _ in ticks], [plain(text, 26) for _, text in ticks])
    axes.set_ylim(position - 0.6, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")


def _bar(axes: Axes, position: float, timing: Timing, reference: Timing | None, longest: float) -> None:
    colour = NETS.get(timing.net, "#cc79a7")
    axes.barh(
        [position], [timing.milliseconds], 0.72, color=colour, edgecolor="white", linewidth=0.4,
        hatch=HATCHES.get(timing.engine, ""), zorder=2,
    )  # fmt: skip
    axes.plot([timing.low, min(timing.high, longest)], [position, position], color="black", linewidth=0.8, zorder=3)
    ratio = f" ({reference.milliseconds / timing.milliseconds:.2g}×)" if reference is not None else ""
    end = min(timing.high, longest)
    axes.annotate(
        f"{_time(timing.milliseconds)}{ratio}", (end, position), xytext=(3, 0), textcoords="offset points",
        va="center", fontsize=6, color="black" if ratio else GREY, annotation_clip=False,
    )  # fmt: skip


def _time(value: float) -> str:
    """Milliseconds with at least two digits.

    >>> _time(0.0716), _time(12.34)
    ('0.072', '12.3')
    """
    return milliseconds(value) if value >= 1 else f"{value:.2g}"
