"""``data=imagenet``: class folders in train/ and val/, decoded as they are needed, with the papers' augmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import CenterCrop, Compose, RandomHorizontalFlip, RandomResizedCrop, Resize

from repq_cli.bounds import Range
from repq_cli.data.base import Data, DataInfo, Inputs, Split, stratified_split
from repq_cli.data.image_folder import Files, Subset, class_names, list_images
from repq_cli.errors import DataError
from repq_cli.images.decode import open_image
from repq_cli.images.files import pixels_of

CLASSES = 1000
# The constants that published ImageNet weights expect, rather than those of the images found.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def describe(root: str = "", size: int = 224) -> Inputs:
    """What a network must know, without reading images: as many classes as there are folders, or ImageNet's own."""
    folder = Path(root) / "train"
    return Inputs("imagenet", (3, size, size), len(class_names(folder)) if folder.is_dir() else CLASSES)


def load(
    root: str = "data/imagenet",
    size: Annotated[int, Range(8)] = 224,
    resize: Annotated[int, Range(8)] = 256,
    scale: tuple[Annotated[float, Range(0, 1, open_low=True)], Annotated[float, Range(0, 1, open_low=True)]] = (
        0.08,
        1.0,
    ),
    val_fraction: Annotated[float, Range(0, 1, open_low=True, open_high=True)] = 0.01,
    workers: Annotated[int, Range(0, 256)] = 8,
) -> Data:
    """ImageNet as torchvision unpacks it: ``root/train/<class>`` and ``root/val/<class>``.

    Training: random resized crops of ``scale`` of the area, mirrored or not. Evaluation: the shorter side scaled to
    ``resize``, the centre cut out. The official validation images are the test split; ``val_fraction`` of training is
    held out to choose the epoch. Raises DataError for a missing folder, a class without images, a broken image.
    """
    if resize < size:
        raise ValueError(f"data.resize={resize} is smaller than the square of data.size={size} that is cut out of it.")
    if scale[0] > scale[1]:
        raise ValueError(f"data.scale={list(scale)} takes the smaller share first: use [{scale[1]}, {scale[0]}].")
    top = Path(root)
    for name in ("train", "val"):
        if not (top / name).is_dir():
            raise DataError(
                f"data.root={root} has no folder '{name}': it takes train/CLASS/IMAGE and val/CLASS/IMAGE, as "
                f"torchvision.datasets.ImageNet unpacks them."
            )
    classes = class_names(top / "train")
    listed = {name: list_images(top / name, classes) for name in ("train", "val")}
    labels = {name: torch.tensor([label for _, label in images]) for name, images in listed.items()}
    paths = {name: [path for path, _ in images] for name, images in listed.items()}
    info = DataInfo("imagenet", (3, size, size), classes, MEAN, STD, "research only (image-net.org)")

    cut, look = RandomCrop(size, scale), CentreCut(size, resize)
    kept, held = stratified_split(labels["train"], val_fraction)
    if len(kept) == 0:
        raise DataError(f"{top / 'train'} has one image per class, too few to hold a validation split out: add some.")
    return Data(
        info,
        Split(Subset(Files(paths["train"], cut, workers), kept), labels["train"][kept], info),
        Split(Subset(Files(paths["train"], look, workers), held), labels["train"][held], info),
        {"test": Split(Files(paths["val"], look, workers), labels["val"], info)},
    )


class RandomCrop:
    """Decodes a random part of an image, scaled to a square, mirrored with probability one half."""

    def __init__(self, size: int, scale: tuple[float, float]) -> None:
        self.transform = Compose([RandomResizedCrop(size, tuple(scale)), RandomHorizontalFlip()])

    def __call__(self, path: Path, seed: int | None) -> Tensor:
        image = open_image(path, "RGB")
        # torchvision draws from torch's global generator: it is lent a seed and gets its own state back.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0 if seed is None else seed)
            cut: Image.Image = self.transform(image)
        return pixels_of(cut)


class CentreCut:
    """Decodes an image, its shorter side scaled to ``resize``, and cuts ``size`` pixels out of the centre."""

    def __init__(self, size: int, resize: int) -> None:
        self.transform = Compose([Resize(resize), CenterCrop(size)])

    def __call__(self, path: Path, seed: int | None) -> Tensor:
        cut: Image.Image = self.transform(open_image(path, "RGB"))
        return pixels_of(cut)
