"""``data=image_folder``: a user's own images in class folders below ``train/`` and ``val/`` or ``test/``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from repq_cli.bounds import Range
from repq_cli.data.augment import Augmentation
from repq_cli.data.base import (
    Data,
    DataInfo,
    Images,
    InMemory,
    Split,
    channel_statistics,
    fingerprint,
    stratified_split,
)
from repq_cli.errors import DataError
from repq_cli.images.files import EXTENSIONS, UNREADABLE, is_image, open_image, pixels_of
from repq_cli.seeds import derive_seed


def load(
    root: str,
    size: Annotated[int, Range(1)] | None = None,
    val_fraction: Annotated[float, Range(0, 1, open_low=True, open_high=True)] = 0.1,
    crop: Annotated[int, Range(0, 64)] = 4,
    mirror: bool = True,
    grey: bool = False,
    cache_mib: Annotated[int, Range(0)] = 4096,
    workers: Annotated[int, Range(0, 256)] = 2,
) -> Data:
    """Images below ``root/train``, ``root/val`` and ``root/test``, one folder per class.

    With only one of ``val`` and ``test``, that one is the test split and ``val_fraction`` of training is held out.
    ``size``: the shorter side is scaled to it and the centre cut out; without it all images must have one size.
    Decoded once into memory below ``cache_mib``, else in ``workers`` processes as they are needed.
    Raises DataError for a missing or empty folder, a class without images, a broken image.
    """
    top = Path(root)
    if not (top / "train").is_dir():
        raise DataError(f"data.root={root} has no folder 'train': it takes train/CLASS/IMAGE and val/ or test/ alike.")
    evaluation = [name for name in ("val", "test") if (top / name).is_dir()]
    if not evaluation:
        raise DataError(f"data.root={root} has neither 'val' nor 'test' beside 'train': add one with the same classes.")
    classes = class_names(top / "train")
    files = {name: list_images(top / name, classes) for name in ("train", *evaluation)}
    decode = Decoder(size or _only_size(files), grey)

    labels = {name: torch.tensor([label for _, label in listed]) for name, listed in files.items()}
    images = {name: _images([path for path, _ in listed], decode, cache_mib, workers) for name, listed in files.items()}
    mean, std = channel_statistics(_sample(images["train"]))
    info = DataInfo(top.name, (1 if grey else 3, *decode.size), classes, mean, std, "the user's own")

    def split(name: str, indices: Tensor | None = None, augment: Augmentation | None = None) -> Split:
        if indices is None:
            return Split(images[name], labels[name], info, augment)
        return Split(Subset(images[name], indices), labels[name][indices], info, augment)

    augment = Augmentation(crop, mirror)
    seen = fingerprint(path for name in ("train", *evaluation[:-1]) for path, _ in files[name])
    if len(evaluation) == 2:
        return Data(info, split("train", augment=augment), split("val"), {"test": split("test")}, seen)
    kept, held = stratified_split(labels["train"], val_fraction)
    if len(kept) == 0:
        raise DataError(f"{top / 'train'} has one image per class, too few to hold a validation split out: add a val/.")
    return Data(info, split("train", kept, augment), split("train", held), {"test": split(evaluation[0])}, seen)


class Decoder:
    """Reads one image file as ``uint8 [C, H, W]``."""

    def __init__(self, size: int | tuple[int, int], grey: bool) -> None:
        self.resize = isinstance(size, int)
        self.size = (size, size) if isinstance(size, int) else size
        self.grey = grey

    def __call__(self, path: Path, seed: int | None = None) -> Tensor:
        image = open_image(path, "L" if self.grey else "RGB")
        if self.resize:
            image = self._fit(image)
        if (image.height, image.width) != self.size:
            raise DataError(
                f"The image {path} is {image.width}x{image.height}, the first one {self.size[1]}x{self.size[0]}: "
                f"set data.size to scale all images to one size, for example data.size={min(self.size)}."
            )
        return pixels_of(image)

    def _fit(self, image: Image.Image) -> Image.Image:
        height, width = self.size
        scale = max(height / image.height, width / image.width)
        enlarged = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
        if enlarged != image.size:
            image = image.resize(enlarged, Image.Resampling.BILINEAR)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return image.crop((left, top, left + width, top + height))


class Subset:
    """Some of the images."""

    def __init__(self, images: Images, indices: Tensor) -> None:
        self.images, self.indices = images, indices

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, batches: Sequence[Tensor], seed: int | None = None) -> Iterator[Tensor]:
        """The images of each batch of indices, in order."""
        return self.images.read([self.indices[batch] for batch in batches], seed)


Decode = Callable[[Path, "int | None"], Tensor]  # an image file, with a seed for its random crop


class Files(Dataset["Tensor | str"]):
    """Images that are decoded when they are read."""

    def __init__(self, paths: list[Path], decode: Decode, workers: int) -> None:
        self.paths, self.decode, self.workers = paths, decode, workers

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, item: tuple[int, int | None]) -> Tensor | str:
        """The image, or what is wrong with it: an exception would reach the user wrapped in a worker's traceback."""
        index, seed = item
        try:
            return self.decode(self.paths[index], None if seed is None else derive_seed(seed, index))
        except DataError as error:
            return str(error)

    def read(self, batches: Sequence[Tensor], seed: int | None = None) -> Iterator[Tensor]:
        """The images of each batch of indices, decoded ahead by workers, in order; pinned where a GPU waits."""
        # The loader draws a base seed for its workers; from a generator of its own, it leaves training's alone.
        generator = torch.Generator().manual_seed(0)
        sampler = [[(index, seed) for index in batch.tolist()] for batch in batches]
        loader = DataLoader(
            self,
            batch_sampler=sampler,
            num_workers=self.workers,
            generator=generator,
            collate_fn=_collate,
            pin_memory=torch.cuda.is_available(),
        )
        for batch in loader:
            if isinstance(batch, str):
                raise DataError(batch)
            yield batch


def _collate(images: list[Tensor | str]) -> Tensor | str:
    """A batch, or the first complaint."""
    complaints = [image for image in images if isinstance(image, str)]
    return complaints[0] if complaints else torch.stack([image for image in images if isinstance(image, Tensor)])


def class_names(folder: Path) -> tuple[str, ...]:
    """The class folders in ``folder``, in order; DataError if there are fewer than two."""
    classes = tuple(sorted(entry.name for entry in folder.iterdir() if _is_class(entry)))
    if len(classes) < 2:
        raise DataError(f"{folder} needs at least two class folders, and has {len(classes)}.")
    return classes


def list_images(folder: Path, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
    """Every image below ``folder`` with its label, in a fixed order."""
    strangers = sorted(entry.name for entry in folder.iterdir() if _is_class(entry) and entry.name not in classes)
    if strangers:
        raise DataError(
            f"{folder} has the class '{strangers[0]}', which train/ does not have: add it there or remove it."
        )
    listed = []
    for label, name in enumerate(classes):
        paths = sorted(path for path in (folder / name).glob("**/*") if is_image(path))
        if not paths:
            raise DataError(f"The class folder {folder / name} has no images ({', '.join(EXTENSIONS)}): add some.")
        listed += [(path, label) for path in paths]
    return listed


def _is_class(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _only_size(files: dict[str, list[tuple[Path, int]]]) -> tuple[int, int]:
    """Height and width of the first image; ``Decoder`` holds all others to it."""
    path = files["train"][0][0]
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except UNREADABLE as error:
        raise DataError(f"The image {path} cannot be decoded: remove or replace it.") from error


def _images(paths: list[Path], decode: Decoder, cache_mib: int, workers: int) -> Images:
    files = Files(paths, decode, workers)
    size = len(paths) * (1 if decode.grey else 3) * decode.size[0] * decode.size[1]
    return InMemory(torch.stack([decode(path) for path in paths])) if size <= cache_mib << 20 else files


def _sample(images: Images) -> Tensor:
    indices = torch.arange(0, len(images), max(1, len(images) // 2000))
    return next(images.read([indices]))
