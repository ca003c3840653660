"""``data=imagenet``: class folders in train/ and val/, decoded as they are needed, with the papers' augmentation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import CenterCrop, Compose, RandomResizedCrop, Resize
from torchvision.transforms.functional import resize as scaled_to

from repq_cli.bounds import Range
from repq_cli.data.base import Data, DataInfo, Inputs, Split, stratified_split
from repq_cli.data.image_cache import Pixels
from repq_cli.data.image_files import Files, Reader, Subset
from repq_cli.data.image_folder import class_names, labelled_images
from repq_cli.data.mixing import Alpha, Magnitude, RandAugment, mixing
from repq_cli.errors import DataError
from repq_cli.images.decode import MAX_PIXELS, PILLOWS_MOST, open_image
from repq_cli.images.files import channels_first, pixels_of
from repq_cli.images.members import Member

CLASSES = 1000
# The constants that published ImageNet weights expect, rather than those of the images found.
RATIO = [3 / 4, 4 / 3]  # of width to height of a random part
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
    train_resize: Annotated[int, Range(8)] | None = None,
    randaugment: Magnitude = 0,
    mixup: Alpha = 0.0,
    cutmix: Alpha = 0.0,
    disk_cache: bool = False,
    workers: Annotated[int, Range(0, 256)] = 8,
    max_pixels: Annotated[int, Range(1, PILLOWS_MOST)] = MAX_PIXELS,
) -> Data:
    """ImageNet as torchvision unpacks it, ``root/train/<class>`` and ``root/val/<class>``, or in shards alike.

    Training: random resized crops of ``scale`` of the area, mirrored or not, of images whose shorter side is scaled
    down to ``train_resize`` before, where it is longer. Evaluation: the shorter side scaled to ``resize``, the centre
    cut out. The official validation images are the test split; ``val_fraction`` of training is held out to choose the
    epoch. ``disk_cache``: what crops are drawn from, and what is evaluated on, is decoded once for all runs, into
    outputs/cache/images. Images of more than ``max_pixels`` are not decoded. What ``randaugment``, ``mixup`` and
    ``cutmix`` do to training images: see ``mixing``.
    Raises DataError for a missing folder, a class without images, a broken image.
    """
    look = image_reader(size, resize, max_pixels)
    if scale[0] > scale[1]:
        raise ValueError(f"data.scale={list(scale)} takes the smaller share first: use [{scale[1]}, {scale[0]}].")
    top = Path(root)
    for name in ("train", "val"):
        if not (top / name).is_dir():
            raise DataError(
                f"data.root={root} has no folder '{name}': it takes train/CLASS/IMAGE and val/CLASS/IMAGE, as "
                f"torchvision.datasets.ImageNet unpacks them."
            )
    classes, found = labelled_images([top / "train", top / "val"])
    listed = dict(zip(("train", "val"), found, strict=True))
    labels = {name: torch.tensor([label for _, label in images]) for name, images in listed.items()}
    paths = {name: [path for path, _ in images] for name, images in listed.items()}
    info = DataInfo("imagenet", (3, size, size), classes, MEAN, STD, "research only (image-net.org)")

    kept, held = stratified_split(labels["train"], val_fraction)
    if len(kept) == 0:
        raise DataError(f"{top / 'train'} has one image per class, too few to hold a validation split out: add some.")

    def split(name: str, reader: Reader, some: Tensor) -> Split:
        files = Files(paths[name], reader, workers, keep=some if disk_cache else False)
        return Split(Subset(files, some), labels[name][some], info)

    train = split("train", RandomCrop(size, scale, train_resize, max_pixels), kept)
    train.augment = RandAugment(randaugment) if randaugment else None
    train.mix = mixing(len(classes), mixup, cutmix)
    return Data(info, train, split("train", look, held), {"test": split("val", look, torch.arange(len(paths["val"])))})


def evaluation_sets(
    root: str = "data/imagenet",
    size: Annotated[int, Range(8)] = 224,
    resize: Annotated[int, Range(8)] = 256,
    disk_cache: bool = False,
    workers: Annotated[int, Range(0, 256)] = 8,
    max_pixels: Annotated[int, Range(1, PILLOWS_MOST)] = MAX_PIXELS,
) -> dict[str, Split]:
    """What ``load`` has for ``test``, of ``root/val`` alone."""
    folder = Path(root) / "val"
    if not folder.is_dir():
        raise DataError(f"data.root={root} has no folder 'val': it takes val/CLASS/IMAGE.")
    classes, (listed,) = labelled_images([folder], least=1)
    files = Files([path for path, _ in listed], image_reader(size, resize, max_pixels), workers, keep=disk_cache)
    info = DataInfo("imagenet", (3, size, size), classes, MEAN, STD, "research only (image-net.org)")
    return {"test": Split(files, torch.tensor([label for _, label in listed]), info)}


def image_reader(
    size: Annotated[int, Range(8)] = 224,
    resize: Annotated[int, Range(8)] = 256,
    max_pixels: Annotated[int, Range(1, PILLOWS_MOST)] = MAX_PIXELS,
) -> Reader:
    """How images are read that a network of this data is asked about."""
    if resize < size:
        raise ValueError(f"data.resize={resize} is smaller than the square of data.size={size} that is cut out of it.")
    return CentreCut(size, resize, max_pixels)


class RandomCrop(Reader):
    """A random part of an image, scaled to a square, mirrored with probability one half.

    longest: pixels that the shorter side has at most when the part is chosen; None for the image as it is.
    """

    def __init__(
        self, size: int, scale: tuple[float, float], longest: int | None = None, max_pixels: int = MAX_PIXELS
    ) -> None:
        self.size, self.scale, self.longest, self.max_pixels = size, list(scale), longest, max_pixels

    @property
    def rule(self) -> str:
        """How large; where the part lies is left to ``finish``."""
        return "RGB" if self.longest is None else f"RGB, the shorter side scaled down to {self.longest}"

    def prepare(self, path: Path | Member) -> Pixels:
        """``uint8 [H, W, 3]``."""
        image = open_image(path, "RGB", self.max_pixels)
        if self.longest is not None and min(image.size) > self.longest:
            image = scaled_to(image, [self.longest])
        return np.array(image)

    def finish(self, pixels: Pixels, seed: int | None) -> Tensor:
        """``uint8 [3, size, size]``."""
        with _drawing(0 if seed is None else seed):
            whole = torch.empty(1).expand(1, *pixels.shape[:2])  # a shape is all that torchvision asks for
            top, left, height, width = RandomResizedCrop.get_params(whole, self.scale, RATIO)
            mirrored = torch.rand(1).item() < 0.5
        part = Image.fromarray(pixels[top : top + height, left : left + width])
        square = np.asarray(part.resize((self.size, self.size), Image.Resampling.BILINEAR))
        return channels_first(square[:, ::-1] if mirrored else square)


@contextmanager
def _drawing(seed: int) -> Iterator[None]:
    """Lend torch's global generator, from which torchvision draws, a seed; it gets its own state back."""
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(state)


class CentreCut(Reader):
    """An image, its shorter side scaled to ``resize``, and ``size`` pixels cut out of the centre."""

    def __init__(self, size: int, resize: int, max_pixels: int = MAX_PIXELS) -> None:
        self.size, self.resize, self.max_pixels = size, resize, max_pixels
        self.transform = Compose([Resize(resize), CenterCrop(size)])

    @property
    def rule(self) -> str:
        """How large."""
        return f"RGB, the shorter side scaled to {self.resize}, the central {self.size}x{self.size}"

    def prepare(self, path: Path | Member) -> Pixels:
        """``uint8 [3, size, size]``."""
        cut: Image.Image = self.transform(open_image(path, "RGB", self.max_pixels))
        return pixels_of(cut).numpy()
