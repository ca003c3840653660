"""``data=photos``: seven photographs that scikit-image and scikit-learn ship; embedded, nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from repq_cli.bounds import Range
from repq_cli.data.base import Data, Evaluation, Inputs
from repq_cli.data.packaged import packaged
from repq_cli.data.pictures import Pair, Patches, PictureInfo, Pictures, Upscaling, pair_of
from repq_cli.images.files import read_rgb
from repq_cli.images.resize import LowRounding

SKIMAGE, SKLEARN = ("skimage", "data"), ("sklearn", "datasets/images")
# Of the stereo pair only the left photograph: the right one shows the same motorcycle.
TRAIN = {
    "coffee.png": SKIMAGE,
    "rocket.jpg": SKIMAGE,
    "motorcycle_left.png": SKIMAGE,
    "china.jpg": SKLEARN,
    "flower.jpg": SKLEARN,
}
VAL, TEST = {"chelsea.png": SKIMAGE}, {"astronaut.png": SKIMAGE}
LICENCE = "CC0 (coffee, rocket, motorcycle, chelsea), public domain (astronaut), CC BY 2.0 (china, flower)"


def describe(upscaling: Upscaling) -> Inputs:
    """What a network must know, without reading anything."""
    return upscaling.inputs("photos")


def evaluation_sets(upscaling: Upscaling, low_rounding: LowRounding = "each_pass") -> dict[str, Evaluation]:
    """The test photograph alone."""
    return {"astronaut": Pictures(_pairs(TEST, upscaling, low_rounding), upscaling)}


def load(
    upscaling: Upscaling,
    patch: Annotated[int, Range(8, 100)] = 48,
    patches: Annotated[int, Range(1)] = 3200,
    low_rounding: LowRounding = "each_pass",
) -> Data:
    """Five photographs to train, one to validate, one to test; low resolution is made by MATLAB's bicubic.

    patch: low-resolution pixels a side of the crops that training draws. patches: how many make an epoch.
    low_rounding: after each pass of the bicubic, as MATLAB rounds bytes, or once at the end.
    """
    info = PictureInfo("photos", upscaling, LICENCE)
    train = Patches(_pairs(TRAIN, upscaling, low_rounding), upscaling, patch, patches)
    val = Pictures(_pairs(VAL, upscaling, low_rounding), upscaling)
    return Data(info, train, val, evaluation_sets(upscaling, low_rounding))


def _pairs(names: dict[str, tuple[str, str]], upscaling: Upscaling, low_rounding: LowRounding) -> list[Pair]:
    pictures = ((name, read_rgb(_path(name, *where))) for name, where in names.items())
    return [pair_of(name, high, upscaling, low_rounding=low_rounding) for name, high in pictures]


def _path(name: str, package: str, folder: str) -> Path:
    return packaged(package, f"{folder}/{name}", "data=sr_folder with photographs of your own")
