"""What a run leaves beside its row for figures: histograms of its weights, crops of its pictures."""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from PIL import Image
from torch import Tensor, nn

from repq_cli.files import make_folder, write_atomically, write_json
from repq_cli.images.files import pixels_of, write_png
from repq_cli.modes.weights import blocks_behind, weight_histograms
from repq_cli.report.row import Row

WEIGHTS, CROPS = "weights.json", "crops"
FORMAT = 1
OWN_FIGURES = ("curves", "steps", "weights")
DOTS = 110  # an inch, for screens


def leave_weights(run_dir: Path, shipped: nn.Module, of_blocks: nn.Module) -> None:
    """Write weights.json, a line for each layer; nothing where no weight is quantized.

    ``of_blocks``: the network whose branches add up to the kernels of ``shipped``. Equal networks give equal bytes.
    """
    layers = weight_histograms(shipped, blocks_behind(of_blocks))
    if layers:
        lines = ",\n".join(json.dumps(layer, separators=(",", ":"), allow_nan=False) for layer in layers)
        write_atomically(run_dir / WEIGHTS, f'{{"format": {FORMAT}, "layers": [\n{lines}\n]}}\n'.encode())


def own_figures(run_dir: Path) -> Iterator[tuple[str, Tensor]]:
    """The figures of one run, by title, as pictures ``uint8 [3, H, W]``; none without matplotlib (extra ``plot``)."""
    if importlib.util.find_spec("matplotlib") is None:
        return
    from repq_cli.report.figures.catalogue import drawings

    for drawing in drawings([run_dir], OWN_FIGURES)[0]:
        with Image.open(io.BytesIO(drawing.png(DOTS))) as picture:
            yield drawing.title, pixels_of(picture.convert("RGB"))


def leave_crops(run_dir: Path, name: str, pictures: Mapping[str, Tensor], metrics: Sequence[Row]) -> None:
    """Write the pictures of one set, and what the networks that made them reach on all of it."""
    folder = make_folder(run_dir / CROPS / _quoted(name))
    shown = {"original" if label == "HR" else label: picture for label, picture in pictures.items() if label != "LR"}
    for label, picture in shown.items():
        write_png(folder / f"{label}.png", picture)
    measured = [row for row in metrics if row["set"] == name and row["engine"] in shown]
    values = {row["engine"]: row["value"] for row in measured if row["name"] == "psnr_y"}
    write_json(folder / "values.json", {"scale": measured[0]["scale"], "psnr_y": values})


def _quoted(name: str) -> str:
    """``name`` as that of a folder, which ``urllib.parse.unquote`` gives back; no dots alone, which lead elsewhere.

    >>> _quoted("Set 5/x2"), _quoted("..")
    ('Set%205%2Fx2', '%2E%2E')
    """
    return quote(name, safe="") if name.strip(".") else name.replace(".", "%2E")
