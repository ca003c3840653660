"""Enlarged pictures side by side: the original, bicubic, the FP net, then what each run deploys."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repq_cli.files import LARGEST as LARGEST_FILE
from repq_cli.files import open_regular
from repq_cli.modes.catalogue import mode_named, mode_order
from repq_cli.report.figures.drawing import Drawing
from repq_cli.report.figures.material import Found, Material
from repq_cli.report.figures.reading import number, read_json
from repq_cli.report.figures.style import SMALL, panels, plain, stem, styled
from repq_cli.report.runs import Run, bits_label
from repq_cli.runs.folder import CropFolder, RunFolder
from repq_cli.runs.quality import number as metric_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LARGEST = 512  # pixels of a side, more than any crop has
COLUMNS = 7  # pictures beside each other
MOST = 9  # runs in a figure

Cropped = tuple[Run, CropFolder, dict[str, Any]]  # with what stands in the folder's values.json


@dataclass(frozen=True)
class Crop:
    """One picture with what stands below it."""

    file: Path
    title: str
    psnr: float | None


def crops(material: Material) -> Found:
    """A figure for each set, scale, model and block."""
    groups: dict[tuple[str, int, str, str], list[Cropped]] = defaultdict(list)
    notes: list[str] = []
    for run in material.runs:
        for folder in RunFolder(run.folder).all_crops():
            values = read_json(folder.values, notes)
            scale = (values or {}).get("scale")
            if values is not None and isinstance(scale, int) and not run.linked:
                groups[folder.name, scale, run.model, run.rep].append((run, folder, values))
    drawings = []
    for (name, scale, model, rep), found in sorted(groups.items(), key=lambda item: item[0]):
        ordered = _one_seed(found)
        if len(ordered) > MOST:
            notes.append(
                f"crops: {len(ordered) - MOST} of {len(ordered)} runs of {model} {rep} on {name} are left out."
            )
        with styled():
            drawing = _drawing(f"{model} {rep}, {name} ×{scale}", _pictures(ordered[:MOST]), notes)
        if drawing is not None:
            drawings.append(drawing)
    return drawings, notes


def _one_seed(found: Sequence[Cropped]) -> list[Cropped]:
    """A run for each mode and width, of the lowest seed: wide before narrow, modes in the papers' order."""
    seeds = sorted(found, key=lambda item: (item[0].seed is None, item[0].seed, item[0].folder))
    first = {(item[0].mode, item[0].bits): item for item in reversed(seeds)}
    return [first[key] for key in sorted(first, key=lambda key: ([-width for width in key[1]], mode_order(key[0])))]


def _pictures(found: Sequence[Cropped]) -> list[Crop]:
    _, folder, values = found[0]
    shared = (("original", "original"), ("bicubic", "bicubic"), ("fp", "FP"))
    pictures = [Crop(folder.picture(name), title, _psnr(values, name)) for name, title in shared]
    for run, own, own_values in found:
        title = f"{mode_named(run.mode).title}, {bits_label(run.bits)}"
        pictures.append(Crop(own.picture("deployed"), title, _psnr(own_values, "deployed")))
    return pictures


def _psnr(values: dict[str, Any], name: str) -> float | None:
    found = values.get("psnr_y")
    return number(found.get(name)) if isinstance(found, dict) else None


def _drawing(what: str, pictures: Sequence[Crop], notes: list[str]) -> Drawing | None:
    usable = []
    for crop in pictures:
        pixels = _pixels(crop.file)
        if pixels is None:
            notes.append(f"{crop.file} is left out: it is no picture of at most {LARGEST} x {LARGEST} pixels.")
        else:
            usable.append((crop, pixels))
    if not usable:
        return None
    rows = -(-len(usable) // COLUMNS)
    columns = -(-len(usable) // rows)
    figure, grid = panels(
        rows, columns, (0.94, 0.94), left=0.05, right=0.05, bottom=0.2, gap_x=0.05, gap_y=0.4, top=0.35
    )
    every = [axes for row in grid for axes in row]
    for axes, (crop, pixels) in zip(every, usable, strict=False):
        _show(axes, crop, pixels)
    for axes in every[len(usable) :]:
        axes.remove()
    figure.text(0.01, 0.99, plain(what, 60), va="top", fontweight="bold")
    caption = f"{what}: a crop of the original, enlarged by bicubic interpolation, by the FP net and by deployed nets, "
    caption += "with the mean PSNR of luma over all pictures of the set in dB."
    return Drawing(stem("crops", what), f"Enlarged: {what}", caption, figure)


def _pixels(file: Path) -> Any:
    """The picture as an array ``uint8 [height, width, 3]``, or None."""
    import numpy
    from PIL import Image

    try:  # as PNG alone, for pictures of some other formats are drawn by programs
        with open_regular(file, LARGEST_FILE) as opened, Image.open(opened, formats=("PNG",)) as picture:
            return numpy.asarray(picture.convert("RGB")) if max(picture.size) <= LARGEST else None
    except Exception:  # given arbitrary bytes, decoders raise nearly everything
        return None


def _show(axes: Axes, crop: Crop, pixels: Any) -> None:
    axes.imshow(pixels, interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(plain(crop.title, 22), loc="center", fontsize=SMALL, pad=2)
    if crop.psnr is not None:
        text = f"{metric_text(crop.psnr, 'psnr_y')} dB"
        axes.text(0.5, -0.04, text, transform=axes.transAxes, ha="center", va="top", fontsize=SMALL)
