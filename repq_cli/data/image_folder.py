"""``data=image_folder``: a user's own images in class folders below ``train/`` and ``val/`` or ``test/``."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
from PIL import Image
from torch import Tensor

from repq_cli.bounds import Range
from repq_cli.data.augment import Augmentation
from repq_cli.data.base import Data, DataInfo, Images, InMemory, Split, channel_statistics, stratified_split
from repq_cli.data.image_cache import Pixels
from repq_cli.data.image_files import TASK, Files, Reader, Subset
from repq_cli.data.mixing import Alpha, Magnitude, mixing
from repq_cli.data.shards import Labelled, list_shards, shards
from repq_cli.errors import DataError
from repq_cli.images.decode import MAX_PIXELS, PILLOWS_MOST, decode, open_image
from repq_cli.images.few import few
from repq_cli.images.files import pixels_of
from repq_cli.images.listing import EXTENSIONS, but_others, entries, files_below, is_image, say_passed_over, some
from repq_cli.images.members import Member

logger = logging.getLogger("repq")


def load(
    root: str,
    size: Annotated[int, Range(1)] | None = None,
    val_fraction: Annotated[float, Range(0, 1, open_low=True, open_high=True)] = 0.1,
    crop: Annotated[int, Range(0, 64)] = 4,
    mirror: bool = True,
    randaugment: Magnitude = 0,
    mixup: Alpha = 0.0,
    cutmix: Alpha = 0.0,
    grey: bool = False,
    cache_mib: Annotated[int, Range(0)] = 4096,
    disk_cache: bool = False,
    workers: Annotated[int, Range(0, 256)] = 2,
    max_pixels: Annotated[int, Range(1, PILLOWS_MOST)] = MAX_PIXELS,
) -> Data:
    """Images below ``root/train``, ``root/val`` and ``root/test``, one folder per class or in shards.

    With only one of ``val`` and ``test``, that one is the test split and ``val_fraction`` of training is held out.
    ``size``: the shorter side is scaled to it and the centre cut out; without it all images must have one size.
    Decoded once into memory below ``cache_mib``, else in ``workers`` processes as they are needed, by ``disk_cache``
    once for all runs into outputs/cache/images.
    Images of more than ``max_pixels`` are refused before they are decoded.
    What ``randaugment``, ``mixup`` and ``cutmix`` do to training images: see ``mixing``.
    Raises DataError for a missing or empty folder, a class without images, a broken image.
    """
    top = Path(root)
    folders = {entry.name for entry in entries(top) if entry.is_dir()} if top.is_dir() else set()
    if "train" not in folders:
        raise DataError(f"data.root={root} has no folder 'train': it takes train/CLASS/IMAGE and val/ or test/ alike.")
    evaluation = [name for name in ("val", "test") if name in folders]
    if not evaluation:
        raise DataError(f"data.root={root} has neither 'val' nor 'test' beside 'train': add one with the same classes.")
    others = folders - {"train", *evaluation}
    if others:
        logger.warning("data.root=%s holds further folders, which are not read: %s.", root, some(sorted(others)))
    parts = ["train", *evaluation]
    classes, found = labelled_images([top / name for name in parts])
    files = dict(zip(parts, found, strict=True))
    read_image = Decoder(size or _only_size(files, max_pixels), grey, max_pixels)

    labels = {name: torch.tensor([label for _, label in listed]) for name, listed in files.items()}
    paths = {name: [path for path, _ in listed] for name, listed in files.items()}
    channels = 1 if grey else 3
    decoded = {name: Files(listed, read_image, workers, keep=disk_cache) for name, listed in paths.items()}
    images = {name: _images(behind, channels, read_image.size, cache_mib) for name, behind in decoded.items()}
    kept, held = torch.arange(len(labels["train"])), None
    if len(evaluation) == 1:
        kept, held = stratified_split(labels["train"], val_fraction)
    if len(kept) == 0:
        raise DataError(f"{top / 'train'} has one image per class, too few to hold a validation split out: add a val/.")
    mean, std = channel_statistics(_sample(Subset(images["train"], kept)))
    info = DataInfo(top.name, (channels, *read_image.size), classes, mean, std, "the user's own")

    def split(name: str, indices: Tensor | None = None) -> Split:
        if indices is None:
            return Split(images[name], labels[name], info)
        return Split(Subset(images[name], indices), labels[name][indices], info)

    train = split("train", kept)
    train.augment = Augmentation(crop, mirror, randaugment)
    train.mix = mixing(len(classes), mixup, cutmix)
    return Data(info, train, split("val") if held is None else split("train", held), {"test": split(evaluation[-1])})


def evaluation_sets(
    root: str,
    size: Annotated[int, Range(1)] | None = None,
    grey: bool = False,
    cache_mib: Annotated[int, Range(0)] = 4096,
    disk_cache: bool = False,
    workers: Annotated[int, Range(0, 256)] = 2,
    max_pixels: Annotated[int, Range(1, PILLOWS_MOST)] = MAX_PIXELS,
) -> dict[str, Split]:
    """What ``load`` has for ``test``, without a look at training images: of ``root/test``, else of ``root/val``.

    Without either, and without ``root/train``, the class folders may lie in ``root`` itself. Any number of classes may
    be there. Raises DataError as ``load`` does.
    """
    folder = _measured_folder(Path(root))
    classes, (listed,) = labelled_images([folder], least=1)
    read_image = Decoder(size or _only_size({"train": listed}, max_pixels), grey, max_pixels)
    channels = 1 if grey else 3
    files = Files([path for path, _ in listed], read_image, workers, keep=disk_cache)
    info = DataInfo(
        Path(root).name, (channels, *read_image.size), classes, (0.0,) * channels, (1.0,) * channels, "the user's own"
    )
    labels = torch.tensor([label for _, label in listed])
    return {"test": Split(_images(files, channels, read_image.size, cache_mib), labels, info)}


def _measured_folder(top: Path) -> Path:
    """Where the class folders lie that a network is measured on."""
    folders = {entry.name for entry in entries(top) if entry.is_dir()} if top.is_dir() else set()
    found = next((top / name for name in ("test", "val") if name in folders), None)
    if found is None and "train" in folders:
        raise DataError(
            f"data.root={top} has neither 'test' nor 'val' beside 'train': name data.root={top / 'train'} to measure "
            f"on the training images."
        )
    if not folders:
        raise DataError(f"data.root={top} has no folders: it takes test/CLASS/IMAGE, or CLASS/IMAGE.")
    return found or top


class Decoder(Reader):
    """Reads one image file as ``uint8 [C, H, W]``. resize: to that size; by default where it is one number."""

    def __init__(
        self,
        size: int | tuple[int, int],
        grey: bool,
        max_pixels: int = MAX_PIXELS,
        resize: bool = False,
    ) -> None:
        self.max_pixels = max_pixels
        self.resize = resize or isinstance(size, int)
        self.size = (size, size) if isinstance(size, int) else size
        self.grey = grey

    @property
    def rule(self) -> str:
        """How large, and in which colours."""
        made = "scaled and cut to" if self.resize else "of"
        return f"{'grey' if self.grey else 'RGB'}, {made} {self.size[1]}x{self.size[0]}"

    def prepare(self, path: Path | Member) -> Pixels:
        """``uint8 [C, H, W]``."""
        image = open_image(path, "L" if self.grey else "RGB", self.max_pixels)
        if self.resize:
            image = self._fit(image)
        if (image.height, image.width) != self.size:
            raise DataError(
                f"The image {path} is {image.width}x{image.height}, the first one {self.size[1]}x{self.size[0]}: "
                f"set data.size to scale all images to one size, for example data.size={min(self.size)}."
            )
        return pixels_of(image).numpy()

    def _fit(self, image: Image.Image) -> Image.Image:
        height, width = self.size
        scale = max(height / image.height, width / image.width)
        enlarged = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
        if enlarged != image.size:
            image = image.resize(enlarged, Image.Resampling.BILINEAR)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return image.crop((left, top, left + width, top + height))


def labelled_images(folders: Sequence[Path], least: int = 2) -> tuple[tuple[str, ...], list[Labelled]]:
    """The classes of the first folder, and the images of each with their labels: in class folders, or in shards.

    Raises DataError as ``class_names``, ``list_images`` and ``list_shards`` do.
    """
    if shards(folders[0]):
        return list_shards(folders, least)
    classes = class_names(folders[0], least)
    return classes, [list_images(folder, classes) for folder in folders]


def class_names(folder: Path, least: int = 2) -> tuple[str, ...]:
    """The class folders in a folder, or its shards' classes, in order; DataError if there are fewer than ``least``."""
    if shards(folder):
        return list_shards([folder], least)[0]
    found = entries(folder)
    classes = tuple(entry.name for entry in found if entry.is_dir())
    if len(classes) < least:
        alone = [entry.name for entry in found if entry.is_file() and is_image(Path(entry.name))]
        beside = f", beside images that lie in none ({some(alone)})" if alone else ""
        wanted = "two class folders" if least == 2 else "one class folder"
        raise DataError(f"{folder} needs at least {wanted}, and has {len(classes)}{beside}.")
    return classes


def list_images(folder: Path, classes: tuple[str, ...]) -> Labelled:
    """Every image below ``folder`` with its label, in a fixed order; what lies in no class is named and left out.

    Raises DataError for a class that is not of ``classes`` or has no images, and for a file in two of them.
    """
    present = entries(folder)
    strangers = [entry.name for entry in present if entry.is_dir() and entry.name not in classes]
    if strangers:
        raise DataError(
            f"{folder} has the class '{strangers[0]}', which train/ does not have: add it there or remove it."
        )
    alone = [entry.name for entry in present if entry.is_file() and is_image(Path(entry.name))]
    if alone:
        logger.warning("Images of %s that lie in no class folder are left out: %s.", folder, some(alone))
    listed: Labelled = []
    passed, again = [], []
    classes_of: dict[str, str] = {}
    for label, name in enumerate(classes):
        files, repeated = files_below(folder / name) if (folder / name).is_dir() else ({}, [])
        images = {place: path for place, path in files.items() if is_image(path)}
        if not images:
            raise DataError(
                f"The class folder {folder / name} has no images{but_others(files.values())}: "
                f"add some ({', '.join(EXTENSIONS)})."
            )
        both = classes_of.keys() & images.keys()
        if both:
            place = min(both)
            raise DataError(f"{place} is in two classes, '{classes_of[place]}' and '{name}', by links: remove one.")
        classes_of |= dict.fromkeys(images, name)
        listed += [(path, label) for path in few(list(images.values()))]
        passed += [path for path in files.values() if not is_image(path)]
        again += repeated
    say_passed_over(folder, passed, again)
    return listed


def _only_size(files: dict[str, Labelled], max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Height and width of the first image; ``Decoder`` holds all others to it."""
    image = decode(files["train"][0][0], max_pixels=max_pixels)
    return image.height, image.width


def _images(files: Files, channels: int, size: tuple[int, int], cache_mib: int) -> Images:
    """In memory, where they fit there."""
    if len(files) * channels * math.prod(size) > cache_mib << 20:
        return files
    files.fill()
    return InMemory(files.all(), files)


def _sample(images: Images) -> Tensor:
    indices = torch.arange(0, len(images), max(1, len(images) // 2000))
    return torch.cat(list(images.read(indices.split(TASK))))
