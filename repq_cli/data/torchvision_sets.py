"""``data=mnist|fashion_mnist|cifar10|cifar100|svhn`` through torchvision; downloaded only on request."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from repq_cli.bounds import Range
from repq_cli.data.augment import Augmentation
from repq_cli.data.base import Data, DataInfo, InMemory, Inputs, Split, channel_statistics, stratified_split
from repq_cli.data.mixing import Alpha, Magnitude, mixing
from repq_cli.errors import DataError
from repq_cli.memory import require_memory

Name = Literal["MNIST", "FashionMNIST", "CIFAR10", "CIFAR100", "SVHN"]
LICENCES = {
    "MNIST": "CC BY-SA 3.0",
    "FashionMNIST": "MIT",
    "CIFAR10": "not stated",
    "CIFAR100": "not stated",
    "SVHN": "non-commercial use",
}
GREY = ("MNIST", "FashionMNIST")


def describe(dataset: Name, size: int = 32) -> Inputs:
    """What a network must know, without reading anything."""
    return Inputs(dataset, (1 if dataset in GREY else 3, size, size), 100 if dataset == "CIFAR100" else 10)


def load(
    dataset: Name,
    root: str = "data",
    download: bool = False,
    size: Annotated[int, Range(1)] = 32,
    val_fraction: Annotated[float, Range(0, 1, open_low=True, open_high=True)] = 0.1,
    crop: Annotated[int, Range(0, 64)] = 4,
    mirror: bool = False,
    randaugment: Magnitude = 0,
    mixup: Alpha = 0.0,
    cutmix: Alpha = 0.0,
) -> Data:
    """A torchvision dataset in memory; 28x28 images are zero-padded to ``size``. Validation is held out of training.

    What ``randaugment``, ``mixup`` and ``cutmix`` do to training images: see ``mixing``.

    Raises DataError if ``root`` does not hold the files and ``download`` is off.
    """
    train_images, train_labels, classes = _read(dataset, Path(root), True, download)
    test_images, test_labels, _ = _read(dataset, Path(root), False, download)
    train_images, test_images = _pad(train_images, size), _pad(test_images, size)
    kept, held = stratified_split(train_labels, val_fraction)
    mean, std = channel_statistics(train_images[kept])
    channels = train_images.shape[1]
    info = DataInfo(dataset, (channels, size, size), classes, mean, std, LICENCES[dataset])
    return Data(
        info,
        Split(
            InMemory(train_images[kept]),
            train_labels[kept],
            info,
            Augmentation(crop, mirror, randaugment),
            mixing(len(classes), mixup, cutmix),
        ),
        Split(InMemory(train_images[held]), train_labels[held], info),
        {"test": Split(InMemory(test_images), test_labels, info)},
    )


def _read(dataset: str, root: Path, train: bool, download: bool) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Images ``uint8 [N, C, H, W]``, labels and class names."""
    import torchvision

    part = {"split": "train" if train else "test"} if dataset == "SVHN" else {"train": train}
    try:
        found = getattr(torchvision.datasets, dataset)(str(root), **part, download=download)
    except (RuntimeError, OSError) as error:
        if download:
            raise DataError(f"{dataset} could not be downloaded into data.root={root}: {error}.") from error
        raise DataError(
            f"data.root={root} holds no intact {dataset}: name the folder that does, or set data.download=true."
        ) from error
    if dataset == "SVHN":  # channels come first already, and classes are the digits themselves
        return torch.as_tensor(found.data), torch.as_tensor(found.labels).long(), tuple("0123456789")
    images = torch.as_tensor(found.data)
    images = images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2)
    return images.contiguous(), torch.as_tensor(found.targets), tuple(found.classes)


def _pad(images: Tensor, size: int) -> Tensor:
    missing = size - images.shape[-1]
    if missing < 0:
        raise ValueError(f"data.size={size} is smaller than the images, which are {images.shape[-1]} pixels wide.")
    require_memory(images.shape[:2].numel() * size**2, f"data.size={size}", "choose fewer pixels")
    return F.pad(images, (missing // 2, missing - missing // 2) * 2)
