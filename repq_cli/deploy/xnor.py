"""Convolutions of signs by XNOR and popcount on 64-bit words (BNN, arXiv 1602.02830; XNOR-Net, 1603.05279).

Of two rows of n signs, as bits, ``a . b = n - 2 popcount(a xor b)``: 64 products and their sum in three instructions.
Needs the extra ``xnor``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from repq_cli.deploy import xnor_kernels as kernels
from repq_cli.deploy.xnor_kernels import OUTPUTS, PIXELS, WORD, Bytes, Distances, Ints, Words


def words_of(channels: int) -> int:
    """How many words hold so many channels."""
    return -(-channels // WORD)


def flipped(channels: Tensor) -> Bytes:
    """Bytes, as many as whole words have, of a bool for each channel."""
    bits = np.zeros(words_of(len(channels)) * WORD, np.uint8)
    bits[: len(channels)] = channels.numpy()
    return np.packbits(bits, bitorder="little")


def pack(x: Tensor, limits: Tensor | float, flips: Tensor | None = None) -> Words:
    """``x >= limits`` of float ``[N, C, H, W]``, xor flips, ``[C]`` each: words ``[N, H, W, ceil(C / 64)]``."""
    images, channels, rows, columns = x.shape
    last = x.detach().float().permute(0, 2, 3, 1).contiguous().view(-1, channels)
    words = np.zeros((len(last), words_of(channels)), np.uint64)
    each = torch.as_tensor(limits, dtype=torch.float32).expand(channels).contiguous().numpy()
    turned = flipped(torch.zeros(channels, dtype=torch.bool) if flips is None else flips)
    kernels.pack(last.numpy(), each, turned, words.view(np.uint8))
    return words.reshape(images, rows, columns, -1)


def unpacked(words: Words, channels: int, codes: tuple[int, int]) -> Tensor:
    """The codes of such words, as float ``[N, C, H, W]``."""
    bits = np.unpackbits(words.view(np.uint8), axis=-1, count=channels, bitorder="little")
    low, high = codes
    return (torch.from_numpy(bits).permute(0, 3, 1, 2).float() * (high - low)).add_(low)


def pooled(words: Words, size: int, stride: int, padding: int) -> Words:
    """The max pool of maps of signs."""
    images, rows, columns, count = words.shape
    sides = [(side + 2 * padding - size) // stride + 1 for side in (rows, columns)]
    out = np.zeros((images, *sides, count), np.uint64)
    kernels.pool(words, size, stride, padding, out)
    return out


class Geometry(NamedTuple):
    """What depends on a map's size: where a place's words lie, which places see the same border, and start values."""

    rows: int
    columns: int
    places: Ints
    kinds: Ints
    start: Ints  # [kinds, O]


class BinaryConv:
    """The integer sums of a convolution of weights of -1 and 1 with activations of two codes.

    weight: codes ``[O, C/g, k, k]``. codes: the two of activations, (-1, 1) or (0, 1). pad: the code around the image,
    one of the two, or zero. Sums are those of ``conv2d`` on codes, exactly.

    With activations ``a = (low + high) / 2 + (high - low) / 2 * s``, signs s, ``sum w a`` follows from ``sum w s``. A
    place around the image gets the sign of its code; where it is a third code, zero beside signs, it gets -1, and the
    weights that met it are added again.
    """

    def __init__(
        self, weight: Tensor, codes: tuple[int, int], stride: int, padding: int, pad: int, groups: int = 1
    ) -> None:
        self.outputs, inputs, self.size, _ = weight.shape
        self.codes, self.stride, self.padding, self.pad, self.groups = codes, stride, padding, pad, groups
        self.channels, self.each = inputs * groups, words_of(inputs)
        self.factor = codes[1] - codes[0]  # of the bits that differ
        self.taps = weight.sum(1, keepdim=True).double()
        self.signs = inputs * self.size**2
        of_group = self.outputs // groups
        blocks = -(-of_group // OUTPUTS)
        bits = pack(weight.float().permute(0, 2, 3, 1).reshape(-1, inputs, 1, 1), 0.0)
        padded = np.zeros((groups, blocks * OUTPUTS, self.size**2 * self.each), np.uint64)
        padded[:, :of_group] = bits.reshape(groups, of_group, -1)
        self.weights = np.ascontiguousarray(padded.reshape(groups * blocks, OUTPUTS, -1).swapaxes(1, 2))
        self.offsets = np.repeat(np.arange(groups), blocks) * self.each
        channels = np.full((groups, blocks * OUTPUTS), -1)
        channels[:, :of_group] = np.arange(self.outputs).reshape(groups, -1)
        self.at_channels = channels.reshape(-1, OUTPUTS)
        self.geometries: dict[tuple[int, int], Geometry] = {}

    def __call__(self, x: Tensor, threshold: float) -> Tensor:
        """``int32 [N, O, H', W']`` from float ``[N, C, H, W]``, whose code is the greater one from ``threshold`` on."""
        return self.sums(pack(x, threshold))

    def sums(self, words: Words) -> Tensor:
        """``int32 [N, O, H', W']``, channels last in memory, from words ``[N, H, W, words]``."""
        by, x, step = self._prepared(words)
        out = np.empty((len(words), by.rows, by.columns, self.outputs), np.int32)
        read = x, by.places, self.weights, self.offsets, self.at_channels
        kernels.sums(*read, by.start, by.kinds, self.factor, step, out)
        return torch.from_numpy(out).permute(0, 3, 1, 2)

    def sums_at_least(self, words: Words, least: Tensor, flips: Bytes, choice: Words | None) -> Words:
        """``sums >= least``, xor flips, as words. least: ``[1 or 2, O]``, the second where choice has a one."""
        by, x, step = self._prepared(words)
        limits = np.full((len(least), len(by.start), len(self.weights) * OUTPUTS), -1, np.int64)
        limits[:, :, : self.outputs] = (by.start - least.long().numpy()[:, None]) // self.factor
        out = np.zeros((len(words), by.rows, by.columns, words_of(self.outputs)), np.uint64)
        chosen = np.empty((0, 0, 0, 0), np.uint8) if choice is None else choice.view(np.uint8)
        kernels.signs(x, by.places, self.weights, limits, flips, by.kinds, chosen, step, out.view(np.uint8))
        return out

    def _prepared(self, words: Words) -> tuple[Geometry, Words, Distances]:
        """Padded words, flat for each image, and the distances of rows and columns in them."""
        images, rows, columns, _ = words.shape
        by = self.geometries.get((rows, columns))
        if by is None:
            by = self.geometries.setdefault((rows, columns), self._geometry(rows, columns))
        if self.groups > 1:
            apart = np.zeros((images * rows * columns, self.groups * self.each), np.uint64)
            kernels.regroup(words.reshape(len(apart), -1), self.channels, self.groups, apart)
            words = apart.reshape(images, rows, columns, -1)
        around, count = self.padding, words.shape[3]
        padded = np.empty((images, rows + 2 * around, self._width(by.columns, columns), count), np.uint64)
        padded[:] = self._border() if around and self.pad == self.codes[1] else 0
        padded[:, around : around + rows, around : around + columns] = words
        distance = padded.shape[2] * count
        return by, padded.reshape(images, -1), (self.stride * distance, self.stride * count)

    def _width(self, columns: int, before: int) -> int:
        """Of padded rows, in which the last tile has room."""
        tiles = -(-columns // PIXELS) * PIXELS
        return max((tiles - 1) * self.stride + self.size, before + 2 * self.padding)

    def _border(self) -> Words:
        """The words of a place whose channels are all one."""
        ones = pack(torch.ones(1, self.channels // self.groups, 1, 1), 0.0).reshape(-1)
        return np.tile(ones, self.groups)

    def _geometry(self, rows: int, columns: int) -> Geometry:
        height, width = ((side + 2 * self.padding - self.size) // self.stride + 1 for side in (rows, columns))
        count = self.groups * self.each
        i, j, word = np.meshgrid(np.arange(self.size), np.arange(self.size), np.arange(self.each), indexing="ij")
        places = ((i * self._width(width, columns) + j) * count + word).reshape(-1)
        total = self.taps.sum((1, 2, 3))
        low, high = self.codes
        start = ((low + high) * total / 2 + (high - low) * self.signs / 2).long()
        outside = torch.zeros(1, self.outputs, dtype=torch.int64)
        kinds = torch.zeros(height, width, dtype=torch.int64)
        if self.padding and self.pad not in self.codes:
            met = self._outside(rows, columns).flatten(1).T  # [places, O]
            outside, found = met.unique(dim=0, return_inverse=True)
            kinds = found.view(height, width)
        return Geometry(height, width, places, kinds.numpy(), (start + outside).numpy())

    def _outside(self, rows: int, columns: int) -> Tensor:
        """The sum of the weights that met a place around the image: ``[O, H', W']``."""
        image = torch.ones(1, 1, rows, columns, dtype=torch.float64)
        inside = F.conv2d(image, self.taps, None, self.stride, self.padding)
        return (self.taps.sum((1, 2, 3)).view(-1, 1, 1) - inside[0]).long()
