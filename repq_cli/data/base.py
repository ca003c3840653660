"""What every dataset gives: images in batches to train, to validate and to test with, and a description."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from repq_cli.data.contents import content_hash
from repq_cli.data.identity import Identity, Listed, Listing
from repq_cli.devices import CPU, to_device
from repq_cli.errors import ConfigError
from repq_cli.images.colour import in_channels
from repq_cli.parts import WHOLE, Part
from repq_cli.seeds import derive_seed

Batch = tuple[Tensor, Tensor]
Augment = Callable[..., Tensor]  # of images and a generator; see ``data/augment.py``
Mix = Callable[[Tensor, Tensor, torch.Generator], Batch]


class Inputs(NamedTuple):
    """What a network must know of its data."""

    name: str
    shape: tuple[int, int, int]
    num_classes: int


class Info(Protocol):
    """A data set's description: at least what a network must know, and what its deployed form is to remember."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, int, int]: ...
    @property
    def num_classes(self) -> int: ...
    @property
    def licence(self) -> str: ...

    def description(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class DataInfo:
    """What images with labels are. ``mean`` and ``std`` normalise pixels in 0..1, so the network's input is signed."""

    name: str
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    licence: str

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    def description(self) -> dict[str, Any]:
        """What whoever runs a deployed network must know of its input and its answers."""
        return {
            "input_shape": list(self.shape),
            "mean": list(self.mean),
            "std": list(self.std),
            "classes": list(self.classes),
        }


class Images(Protocol):
    """Decoded images ``uint8 [N, C, H, W]``, in memory or behind a decoder."""

    def __len__(self) -> int: ...

    def read(self, batches: Sequence[Tensor], seed: int | None = None) -> Iterator[Tensor]:
        """The images of each batch of indices, in order; with a ``seed``, those that decode with random crops do so."""
        ...


Marks = tuple[list[str], list[str]]  # names of images, or none; hashes of what they hold


@runtime_checkable
class Marked(Protocol):
    """Images that tell what they hold."""

    def marks(self, indices: Tensor) -> Marks | None:
        """None where what is behind them does not tell."""
        ...


def marks_of(images: Images, indices: Tensor) -> Marks | None:
    """The marks of some images, where those tell."""
    return images.marks(indices) if isinstance(images, Marked) else None


@runtime_checkable
class Filled(Protocol):
    """What may read from a cache on the disk."""

    def fill(self) -> None:
        """Have the cache filled, if there is to be one; until then, or without, the same images are decoded."""
        ...


def fill_of(part: object) -> None:
    """Have the cache of some images, or of a split, filled where it has one."""
    if isinstance(part, Filled):
        part.fill()


class InMemory:
    """Images that fit into memory. ``source``: the files that they were read from, if any."""

    def __init__(self, images: Tensor, source: Marked | None = None) -> None:
        self.images, self.source = images, source

    def __len__(self) -> int:
        return len(self.images)

    def read(self, batches: Sequence[Tensor], seed: int | None = None) -> Iterator[Tensor]:
        """The images of each batch of indices, in order."""
        return (self.images.index_select(0, indices) for indices in batches)

    def marks(self, indices: Tensor) -> Marks | None:
        """Those of the files, else hashes of the pixels."""
        if self.source is not None:
            return self.source.marks(indices)
        pixels = self.images.cpu().contiguous().numpy()
        return [], [content_hash(pixels[index]) for index in indices.tolist()]


class InChannels:
    """Grey images in three equal channels, or coloured ones in grey."""

    def __init__(self, images: Images, channels: int) -> None:
        self.images, self.channels = images, channels

    def __len__(self) -> int:
        return len(self.images)

    def read(self, batches: Sequence[Tensor], seed: int | None = None) -> Iterator[Tensor]:
        """The images of each batch of indices, in order."""
        return (in_channels(images, self.channels) for images in self.images.read(batches, seed))

    def marks(self, indices: Tensor) -> Marks | None:
        """Those of the images as they are stored."""
        return marks_of(self.images, indices)


class Training(Protocol):
    """What a stage of training reads."""

    def __len__(self) -> int: ...

    def steps(self, batch_size: int) -> int:
        """Full batches of one epoch; ConfigError where there is not one."""
        ...

    def training_batches(
        self, batch_size: int, seed: int, start: int = 0, device: torch.device = CPU
    ) -> Iterator[Batch]:
        """One epoch from its batch ``start`` on; batch ``i`` of a seed does not depend on the batches before it."""
        ...


class Evaluation(Protocol):
    """What a network is evaluated on."""

    def __len__(self) -> int: ...

    def batches(self, batch_size: int, device: torch.device = CPU) -> Iterator[Batch]:
        """Everything once, in order, as it is."""
        ...


class Split:
    """Images and labels, read in a fixed order, or in one that only the seed decides.

    For training ``augment`` changes the images, and ``mix`` then those of a batch together, with their labels.
    """

    part = WHOLE

    def __init__(
        self, images: Images, labels: Tensor, info: DataInfo, augment: Augment | None = None, mix: Mix | None = None
    ) -> None:
        self.images, self.labels, self.info, self.augment, self.mix = images, labels, info, augment, mix
        self._statistics = torch.tensor([info.mean, info.std]).view(2, -1, 1, 1)

    def __len__(self) -> int:
        return len(self.labels)

    def steps(self, batch_size: int) -> int:
        """Full batches of one epoch of training."""
        if batch_size > len(self):
            raise ConfigError(
                f"data.batch_size={batch_size} is larger than the training split of {len(self)} images: "
                f"use data.batch_size={len(self)} or less."
            )
        return len(self) // batch_size

    def training_batches(
        self, batch_size: int, seed: int, start: int = 0, device: torch.device = CPU
    ) -> Iterator[Batch]:
        """Shuffled, augmented, full batches of one epoch; ``start`` skips the first ones without reading them.

        Batch ``i`` of a seed is the same whether or not the batches before it were read.
        """
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        batches = order[: self.steps(batch_size) * batch_size].split(batch_size)[start:]
        own = None if self.part.is_whole else (batch_size, self.part.indices(batch_size))
        batches = batches if own is None else [batch[own[1]] for batch in batches]
        for step, (indices, images) in enumerate(zip(batches, self.images.read(batches, seed), strict=True), start):
            generator = torch.Generator().manual_seed(derive_seed(seed, step))
            if self.augment is not None:
                images = self.augment(images, generator) if own is None else self.augment(images, generator, own)
            batch = self._normalise(images, device), to_device(self.labels[indices], device)
            yield batch if self.mix is None else self.mix(*batch, generator)

    def batches(self, batch_size: int, device: torch.device = CPU) -> Iterator[Batch]:
        """Every image once, in order, as it is."""
        batches = torch.arange(self.part.rank, len(self), self.part.ranks).split(batch_size)
        for indices, images in zip(batches, self.images.read(batches), strict=True):
            yield self._normalise(images, device), to_device(self.labels[indices], device)

    def divided(self, part: Part) -> Split:
        """The same images, of whose batches only ``part`` is read: a training batch's, or every n-th of all."""
        same = copy.copy(self)
        same.part = part
        return same

    def listing(self) -> Listing | None:
        """What the split consists of."""
        marks = marks_of(self.images, torch.arange(len(self)))
        return None if marks is None else Listing(*marks, self.labels.tolist())

    def fill(self) -> None:
        """Have the images' cache filled."""
        fill_of(self.images)

    def normalised_by(self, mean: Sequence[float], std: Sequence[float]) -> Split:
        """The same images for a network that was trained with other statistics."""
        return Split(self.images, self.labels, replace(self.info, mean=tuple(mean), std=tuple(std)), self.augment)

    def in_channels(self, channels: int) -> Split:
        """The same images for a network that reads grey, or colours."""
        info = replace(self.info, shape=(channels, *self.info.shape[1:]))
        return Split(InChannels(self.images, channels), self.labels, info, self.augment)

    def labelled_as(self, classes: Sequence[str]) -> Split:
        """The same images, with the labels that their classes have among ``classes``."""
        numbers = torch.tensor([classes.index(name) for name in self.info.classes])
        return Split(self.images, numbers[self.labels], replace(self.info, classes=tuple(classes)), self.augment)

    def _normalise(self, images: Tensor, device: torch.device) -> Tensor:
        """Bytes travel to the device; floats are made there."""
        self._statistics = self._statistics.to(device)
        mean, std = self._statistics
        return to_device(images, device).float().div_(255).sub_(mean).div_(std)


@dataclass(frozen=True)
class Data:
    """A dataset; ``tests`` by name, the first of which gives a run's metric.

    fingerprint: of what trains and validates, from a dataset with splits of its own that do not list their images.
    """

    info: Info
    train: Training
    val: Evaluation
    tests: Mapping[str, Evaluation]
    fingerprint: str = ""

    def identity(self) -> Identity:
        """What it consists of; files are read for it, once for all runs."""
        return Identity(
            {"train": _listing(self.train), "val": _listing(self.val), **listings_of(self.tests)}, self.fingerprint
        )

    def fill(self) -> None:
        """Have the caches filled that its splits read from. Raises DataError where the disk has no room for them."""
        for split in (self.val, *self.tests.values(), self.train):  # the largest last: what it lacks is known at once
            fill_of(split)


def listings_of(tests: Mapping[str, Evaluation]) -> dict[str, Listing | None]:
    """What evaluation sets consist of, under the names that an ``Identity`` has for them."""
    return {f"test/{name}": _listing(split) for name, split in tests.items()}


def _listing(split: Training | Evaluation) -> Listing | None:
    return split.listing() if isinstance(split, Listed) else None


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of ``uint8 [N, C, H, W]``, in units of 0..1."""
    sample = images[:: max(1, len(images) // 10_000)].float() / 255
    std, mean = torch.std_mean(sample, dim=(0, 2, 3))
    return tuple(mean.tolist()), tuple(std.clamp_min(1e-3).tolist())


def stratified_split(labels: Tensor, held_out: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Indices ``(kept, held out)``: the share ``held_out`` of every class, at least one image of each."""
    generator = torch.Generator().manual_seed(seed)
    kept, held = [], []
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        count = max(1, round(held_out * len(members)))
        held.append(members[:count])
        kept.append(members[count:])
    return torch.cat(kept).sort().values, torch.cat(held).sort().values
