"""Figures that commands draw, as files and for TensorBoard."""

from __future__ import annotations

import importlib.util
import io
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from repq_cli.errors import DataError
from repq_cli.extras import extra, installing
from repq_cli.files import write_atomically
from repq_cli.report.figures.drawing import Drawing
from repq_cli.runs.folder import RunFolder

if TYPE_CHECKING:
    from torch import Tensor

FORMATS: dict[str, Callable[[Drawing], bytes]] = {
    "png": lambda drawing: drawing.png(),
    "svg": lambda drawing: drawing.svg().encode(),
}
OF_A_RUN = ("steps", "weights")  # that trackers do not draw themselves
DOTS = 110  # an inch, for cards of some 350 pixels


def save(drawing: Drawing, folder: Path, formats: Iterable[str] = FORMATS) -> list[Path]:
    """Write a figure in each of the formats; its files."""
    files = {form: folder / f"{drawing.name}.{form}" for form in formats}
    for form, file in files.items():
        write_atomically(file, FORMATS[form](drawing))
    return list(files.values())


def drawn(draw: Callable[[], Iterable[Drawing]], folder: Path) -> list[Path]:
    """The files of figures that stand beside a command's numbers; none, and a note, without matplotlib."""
    try:
        with extra("plot"):
            import matplotlib  # noqa: F401
    except DataError as error:
        print(f"No figure: {error}")
        return []
    return [file for drawing in draw() for file in save(drawing, folder)]


def no_pictures(run: RunFolder) -> Iterator[tuple[str, Tensor]]:
    """Instead of ``pictures_of``."""
    return iter(())


def pictures_of(run: RunFolder) -> Iterator[tuple[str, Tensor]]:
    """The panels of a run's figures, by title, as pictures ``uint8 [3, H, W]``; without matplotlib none, and a note."""
    if importlib.util.find_spec("matplotlib") is None:
        logging.getLogger("repq").info("No pictures of steps and weights for trackers: %s.", installing("plot"))
        return
    from PIL import Image

    from repq_cli.images.files import pixels_of
    from repq_cli.report.figures.catalogue import drawings

    for drawing in drawings([run.path], OF_A_RUN)[0]:
        for title, content in drawing.parts(DOTS):
            with Image.open(io.BytesIO(content)) as picture:
                yield f"{drawing.title}, {title}", pixels_of(picture.convert("RGB"))
