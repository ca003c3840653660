"""``data=digits``: scikit-learn's 1,797 real handwritten digits, upsampled; embedded, nothing is downloaded."""

from __future__ import annotations

import functools
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F

from repq_cli.bounds import Range
from repq_cli.data.augment import Augmentation
from repq_cli.data.base import Data, DataInfo, InMemory, Split, channel_statistics, stratified_split
from repq_cli.data.packaged import packaged
from repq_cli.memory import require_memory


@functools.cache
def _table() -> np.ndarray[Any, np.dtype[np.float32]]:
    """64 pixels and a label in each row, which every run of a sweep reads."""
    return np.loadtxt(packaged("sklearn", "datasets/data/digits.csv.gz", "other data"), np.float32, delimiter=",")


def load(size: Annotated[int, Range(8)] = 32, crop: Annotated[int, Range(0, 64)] = 3) -> Data:
    """8x8 digits made ``size`` pixels wide (bilinear). Splits are fixed: 20 % test, 10 % validation, by class.

    ``crop``: training images are shifted by up to so many pixels. Source: UCI ML hand-written digits (CC BY 4.0).
    """
    require_memory(1797 * size * size * 9, f"data.size={size}", "choose fewer pixels")  # as floats, then as bytes
    table = _table()
    small = torch.from_numpy(table[:, :64]).view(-1, 1, 8, 8) / 16
    large = F.interpolate(small, size=(size, size), mode="bilinear", align_corners=False)
    images = (large * 255).round().to(torch.uint8)
    labels = torch.from_numpy(table[:, 64]).long()

    rest, test = stratified_split(labels, 0.2)
    kept, held = stratified_split(labels[rest], 0.125)
    train, val = rest[kept], rest[held]
    mean, std = channel_statistics(images[train])
    classes = tuple("0123456789")
    info = DataInfo("digits", (1, size, size), classes, mean, std, "CC BY 4.0 (UCI ML Repository)")

    def split(indices: torch.Tensor, augment: Augmentation | None = None) -> Split:
        return Split(InMemory(images[indices]), labels[indices], info, augment)

    return Data(info, split(train, Augmentation(crop)), split(val), {"test": split(test)})
