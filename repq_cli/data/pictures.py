"""Pairs of a low-resolution picture and its original: random crops to train on, whole pictures to evaluate on."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from repq_cli.data.base import Batch, Inputs
from repq_cli.data.contents import content_hash
from repq_cli.data.identity import Listing, names_of
from repq_cli.devices import CPU, to_device
from repq_cli.errors import ConfigError, DataError
from repq_cli.images.colour import luma
from repq_cli.images.resize import LowRounding, shrink, to_bytes
from repq_cli.parts import WHOLE, Part
from repq_cli.seeds import derive_seed

Colour = Literal["luma", "rgb"]
OUTPUT = (1080, 1920)  # rows and columns for which multiply-accumulates are counted, as in the literature
SMALLEST = 11  # pixels that SSIM's window wants, behind the border that is shaved


class Upscaling(NamedTuple):
    """What a network does with pictures: how many times it enlarges them, luma alone or RGB."""

    scale: int
    colour: Colour

    @property
    def channels(self) -> int:
        """Of the network's input."""
        return 1 if self.colour == "luma" else 3

    def inputs(self, name: str) -> Inputs:
        """What a network for these pictures must know."""
        return Inputs(name, (self.channels, OUTPUT[0] // self.scale, OUTPUT[1] // self.scale), 0)


@dataclass(frozen=True)
class PictureInfo:
    """What pairs of pictures are. ``shape``: the input for an output of 1080x1920 pixels; pictures are of any size."""

    name: str
    upscaling: Upscaling
    licence: str
    num_classes: int = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns."""
        return self.upscaling.inputs(self.name).shape

    def description(self) -> dict[str, Any]:
        """What whoever runs a deployed network must know: pixels of 0..255 go in and come out."""
        return {"input_shape": list(self.shape), **self.upscaling._asdict()}


class Pair(NamedTuple):
    """``low: uint8 [C, h, w]`` and ``high: uint8 [C, s h, s w]``."""

    name: str
    low: Tensor
    high: Tensor


def cropped(high: Tensor, scale: int) -> Tensor:
    """The upper left part whose sides are multiples of ``scale``."""
    rows, columns = (size // scale * scale for size in high.shape[-2:])
    return high[..., :rows, :columns]


def pair_of(
    name: str,
    high: Tensor,
    upscaling: Upscaling,
    low: Tensor | None = None,
    low_rounding: LowRounding = "each_pass",
) -> Pair:
    """A pair of RGB pictures; without ``low``, ``high`` is shrunk as MATLAB's bicubic does.

    Raises DataError where both sizes do not fit or the picture is too small to be measured.
    """
    scale = upscaling.scale
    high = cropped(high, scale)
    least = SMALLEST + 2 * scale
    if min(high.shape[-2:]) < least:
        raise DataError(f"{name} is {_size(high)}: pictures need at least {least} pixels a side at scale {scale}.")
    if low is None:
        return Pair(name, shrink(high, scale, low_rounding), high)
    if tuple(size * scale for size in low.shape[-2:]) != tuple(high.shape[-2:]):
        raise DataError(
            f"{name} is {_size(high)} and its low-resolution picture {_size(low)}, which is not 1/{scale} of it: use "
            f"the folder that was made for model.scale={scale}, or leave it out and have it made."
        )
    return Pair(name, low, high)


def _size(pixels: Tensor) -> str:
    return f"{pixels.shape[-1]}x{pixels.shape[-2]}"


def in_colour(pixels: Tensor, colour: Colour) -> Tensor:
    """RGB ``uint8`` as a network reads it: itself, or luma rounded to ``uint8``, as image files and videos store it."""
    return pixels if colour == "rgb" else to_bytes(luma(pixels))


def _content(pair: Pair) -> str:
    """A hash of the pixels at both resolutions, whatever files they came from."""
    both = (pixels.contiguous().numpy() for pixels in (pair.low, pair.high))
    return content_hash(b"".join(f"{pixels.shape}".encode() + pixels.tobytes() for pixels in both))


class Pictures:
    """Whole pairs, in order, each a batch of its own; what is read from files is kept as RGB."""

    def __init__(self, pairs: Sequence[Pair], upscaling: Upscaling) -> None:
        self.pairs, self.upscaling = list(pairs), upscaling

    def divided(self, part: Part) -> Pictures:
        """Every n-th pair."""
        return Pictures(self.pairs[part.rank :: part.ranks], self.upscaling)

    def __len__(self) -> int:
        return len(self.pairs)

    def listing(self) -> Listing:
        """What the split consists of."""
        contents = [_content(pair) for pair in self.pairs]
        return Listing(names_of([Path(pair.name) for pair in self.pairs]), contents, [])

    def batches(self, batch_size: int, device: torch.device = CPU) -> Iterator[Batch]:
        """One pair a batch, whatever ``batch_size``, since sizes differ."""
        for pair in self.pairs:
            low, high = (in_colour(pixels, self.upscaling.colour) for pixels in (pair.low, pair.high))
            yield to_device(low.unsqueeze(0), device).float(), to_device(high.unsqueeze(0), device).float()


class Patches:
    """Random aligned crops of pairs, each in one of the eight orientations; an epoch is so many of them.

    Every position of every picture is as likely as any other.
    """

    part = WHOLE

    def __init__(self, pairs: Iterable[Pair], upscaling: Upscaling, patch: int, patches: int) -> None:
        """``patch``: pixels a side at low resolution; pairs are held in the network's colours."""
        self.scale, self.patch, self.patches = upscaling.scale, patch, patches
        self.names: list[Path] = []
        self.contents: list[str] = []  # of the RGB pictures, which are not kept
        self.pairs: list[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]] = []
        for pair in pairs:
            self.names.append(Path(pair.name))
            self.contents.append(_content(pair))
            low, high = (in_colour(pixels, upscaling.colour).numpy() for pixels in (pair.low, pair.high))
            self.pairs.append((low, high))
        positions = np.array([(low.shape[1] - patch + 1) * (low.shape[2] - patch + 1) for low, _ in self.pairs])
        self.share = np.cumsum(positions) / positions.sum()

    def __len__(self) -> int:
        return len(self.pairs)

    def divided(self, part: Part) -> Patches:
        """The same crops, of whose batches only ``part`` is cut out."""
        same = copy.copy(self)
        same.part = part
        return same

    def listing(self) -> Listing:
        """What the split consists of."""
        return Listing(names_of(self.names), self.contents, [])

    def steps(self, batch_size: int) -> int:
        """Full batches of one epoch."""
        if batch_size > self.patches:
            raise ConfigError(
                f"data.batch_size={batch_size} is more than the data.patches={self.patches} of an epoch: use less."
            )
        return self.patches // batch_size

    def training_batches(
        self, batch_size: int, seed: int, start: int = 0, device: torch.device = CPU
    ) -> Iterator[Batch]:
        """The batches of one epoch from ``start`` on; each is drawn from a seed of its own."""
        for step in range(start, self.steps(batch_size)):
            low, high = self._batch(batch_size, np.random.default_rng(derive_seed(seed, step)))
            yield to_device(low, device).float(), to_device(high, device).float()

    def _batch(self, count: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        patch, scale = self.patch, self.scale
        channels = self.pairs[0][0].shape[0]
        chosen = np.searchsorted(self.share, generator.random(count), side="right")
        places = generator.random((count, 2))
        orientations = generator.integers(8, size=count)
        own = self.part.indices(count).tolist()  # what is drawn is drawn for all, whoever has the others
        lows = np.empty((len(own), channels, patch, patch), np.uint8)
        highs = np.empty((len(own), channels, patch * scale, patch * scale), np.uint8)
        for row_of_batch, index in enumerate(own):
            low, high = self.pairs[chosen[index]]
            row = int(places[index, 0] * (low.shape[1] - patch + 1))
            column = int(places[index, 1] * (low.shape[2] - patch + 1))
            orientation = int(orientations[index])
            lows[row_of_batch] = _turned(low[:, row : row + patch, column : column + patch], orientation)
            row, column, size = row * scale, column * scale, patch * scale
            highs[row_of_batch] = _turned(high[:, row : row + size, column : column + size], orientation)
        return torch.from_numpy(lows), torch.from_numpy(highs)


def _turned(pixels: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """One of the eight views of a square ``[C, n, n]``: transposed or not, either axis reversed or not."""
    if orientation & 1:
        pixels = pixels.swapaxes(1, 2)
    if orientation & 2:
        pixels = pixels[:, ::-1]
    return pixels[:, :, ::-1] if orientation & 4 else pixels
