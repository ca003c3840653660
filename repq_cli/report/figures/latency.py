"""The metric against measured latency, float and integers: a line over widths for each family, net and engine."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from repq_cli.modes.catalogue import mode_named
from repq_cli.report.figures.drawing import Drawing
from repq_cli.report.figures.labels import Label, annotate
from repq_cli.report.figures.material import Found, Material
from repq_cli.report.figures.reading import Timing
from repq_cli.report.figures.speed import NETS, kind_name, shape_label
from repq_cli.report.figures.style import (
    COLOURS,
    LINES,
    MARKERS,
    keep_to_percent,
    log_axis,
    panels,
    plain,
    stem,
    styled,
)
from repq_cli.report.runs import Bits, bits_label
from repq_cli.runs.quality import UNITS

BESIDE = 1.6  # inches to the right of the axes, for names of lines
SHIPPED = ("merged", "int8", "binary")  # a net of branches reaches what the merged one does


class Place(NamedTuple):
    """What stands in one figure: measured alike, on the same machine."""

    data: str
    metric: str
    split: str
    machine: str
    shape: tuple[int, ...]


class Series(NamedTuple):
    """What makes one line."""

    family: str
    rep: str
    mode: str
    net: str
    engine: str
    bits: tuple[int, int] | None


def latency(material: Material) -> Found:
    """A figure for each data set, metric, machine and shape of images, at the smallest batch that was measured."""
    found: dict[Place, list[Timing]] = defaultdict(list)
    unknown = 0
    for bench in sorted(material.benches, key=lambda bench: bench.started):
        for timing in bench.timings:
            if timing.value is None or not timing.metric:
                unknown += 1
            elif timing.net in SHIPPED:
                place = Place(timing.data, timing.metric, timing.split, bench.machine, timing.shape)
                found[place].append(timing)
    notes = [f"latency: {unknown} measurements of nets whose metric is not known are left out."] if unknown else []
    drawings = []
    for place in sorted(found):
        with styled():
            drawing, own_notes = _drawing(place, found[place])
        drawings.append(drawing)
        notes += own_notes
    return drawings, notes


def _series(timings: Sequence[Timing]) -> dict[Series, list[Timing]]:
    """Lines, fast nets first; of several measurements of one net the newest. Float nets have no bits."""
    newest: dict[tuple[Series, str, float], Timing] = {}
    for timing in timings:
        family = re.match("[a-z]*", timing.model.lower())
        bits = None if timing.net == "merged" else timing.bits
        series = Series(family.group() if family else "", timing.rep, timing.mode, timing.net, timing.engine, bits)
        newest[series, timing.model, timing.width or 1.0] = timing
    lines: dict[Series, list[Timing]] = defaultdict(list)
    for (series, _, _), timing in newest.items():
        lines[series].append(timing)
    ordered = sorted(lines, key=lambda series: (series[:5], series.bits or ()))
    return {series: sorted(lines[series], key=lambda timing: timing.milliseconds) for series in ordered}


def _drawing(place: Place, timings: Sequence[Timing]) -> tuple[Drawing, list[str]]:
    batch = min(timing.batch for timing in timings)
    kept = [timing for timing in timings if timing.batch == batch]
    lines = _series(kept)
    older = len(kept) - sum(map(len, lines.values()))
    differs = [len({series[index] for series in lines}) > 1 for index in range(3)]
    differs.append(len({series.bits for series in lines if series.bits}) > 1)
    methods = list(dict.fromkeys((*series[:3], series.bits) for series in lines))
    engines = list(dict.fromkeys(series.engine for series in lines))
    figure, [[axes]] = panels(1, 1, (3.9, 2.8), right=BESIDE, top=0.15)
    labels, points = [], []
    for series, own in lines.items():
        index = methods.index((*series[:3], series.bits))
        colour = NETS.get(series.net, COLOURS[-2])
        xs, ys = [timing.milliseconds for timing in own], [timing.value or 0.0 for timing in own]
        line = LINES[engines.index(series.engine) % len(LINES)]
        axes.plot(
            xs, ys, color=colour, marker=MARKERS[index % len(MARKERS)], linestyle=line,
            markerfacecolor="white" if series.net == "merged" else colour, zorder=3,
        )  # fmt: skip
        labels.append(Label(xs[-1], ys[-1], _name(series, differs), colour, bold=True))
        points += [*zip(xs, ys, strict=True), *_between(xs, ys)]
    for own in lines.values():
        sizes = len({timing.model for timing in own}) > 1 or len(own) == 1
        labels += [Label(t.milliseconds, t.value or 0.0, _size(t, sizes), "#333333", farthest=15) for t in own]
    log_axis(axes, "x", "{:g}".format, [timing.milliseconds for own in lines.values() for timing in own], room=0.08)
    axes.margins(y=0.15)
    axes.autoscale_view(scalex=False)
    unit = UNITS.get(place.metric, "")
    keep_to_percent(axes, unit)
    image = f"an image of {shape_label(place.shape)}" if place.shape else "an image"
    axes.set_xlabel(f"milliseconds for {image}{'' if batch == 1 else f', batch {batch}'}")
    axes.set_ylabel(plain(f"{place.data}: {place.metric} on {place.split}{f' ({unit})' if unit else ''}"))
    missing = annotate(axes, [label for label in labels if label.text], points, beside=BESIDE)
    caption = f"{place.metric} of {place.data} ({place.split}) against the median time for {image} at batch {batch}"
    caption += f"{', ' + place.machine if place.machine else ''}; a line for each family, net and engine."
    name = stem("latency", place.data, place.metric, place.split, shape_label(place.shape))
    dropped = {
        f"measurements at other batches than {batch} are left out": len(timings) - len(kept),
        "older measurements of nets that were measured again are left out": older,
        "labels are left out for want of room": missing,
    }
    notes = [f"{name}: {count} {what}." for what, count in dropped.items() if count]
    return Drawing(name, f"Latency and {place.metric}: {place.data}", caption, figure), notes


def _name(series: Series, differs: Sequence[bool]) -> str:
    """What tells the line from the others, at least net and engine."""
    words = (series.family, series.rep, mode_named(series.mode).title)
    told = " ".join(word for word, told in zip(words, differs, strict=False) if told and word)
    bits = bits_label(Bits(*series.bits)) if series.bits and differs[-1] else ""
    return ", ".join(word for word in (told, bits, kind_name(series.net, series.engine)) if word)


def _size(timing: Timing, with_model: bool) -> str:
    width = f"×{timing.width:g}" if timing.width is not None else ""
    return " ".join(word for word in (timing.model if with_model else "", width) if word)


def _between(xs: Sequence[float], ys: Sequence[float], parts: int = 10) -> list[tuple[float, float]]:
    """Points on the line through the given ones, straight where x is logarithmic."""
    pairs = zip(zip(xs, ys, strict=True), zip(xs[1:], ys[1:], strict=True), strict=False)
    return [
        (x * (next_x / x) ** (part / parts), y + (next_y - y) * part / parts)
        for (x, y), (next_x, next_y) in pairs
        for part in range(1, parts)
    ]
