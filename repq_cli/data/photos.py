"""``data=photos``: seven photographs that scikit-image and scikit-learn ship; embedded, nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from repq_cli.bounds import Range
from repq_cli.data.base import Data, Evaluation, Inputs
from repq_cli.data.packaged import packaged
from repq_cli.data.pictures import Pair, Patches, PictureInfo, Pictures, Upscaling, pair_of
from repq_cli.images.files import read_rgb

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


def describe(upscaling: Upscaling, **_: object) -> Inputs:
    """What a network must know, without reading anything."""
    return upscaling.inputs("photos")


def evaluation_sets(upscaling: Upscaling, **_: object) -> dict[str, Evaluation]:
    """The test photograph alone."""
    return {"astronaut": Pictures(_pairs(TEST, upscaling), upscaling)}


def load(
    upscaling: Upscaling, patch: Annotated[int, Range(8, 100)] = 48, patches: Annotated[int, Range(1)] = 3200
) -> Data:
    """Five photographs to train, one to validate, one to test; low resolution is made by MATLAB's bicubic.

    patch: low-resolution pixels a side of the crops that training draws. patches: how many make an epoch.
    """
    info = PictureInfo("photos", upscaling, LICENCE)
    train = Patches(_pairs(TRAIN, upscaling), upscaling, patch, patches)
    return Data(info, train, Pictures(_pairs(VAL, upscaling), upscaling), evaluation_sets(upscaling))


def _pairs(names: dict[str, tuple[str, str]], upscaling: Upscaling) -> list[Pair]:
    return [pair_of(name, read_rgb(_path(name, *where)), upscaling) for name, where in names.items()]


def _path(name: str, package: str, folder: str) -> Path:
    return packaged(package, f"{folder}/{name}", "data=sr_folder with photographs of your own")
