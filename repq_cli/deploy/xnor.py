"""Convolutions of signs by XNOR and popcount on 64-bit words (BNN, arXiv 1602.02830; XNOR-Net, 1603.05279).

Of two rows of n signs, as bits, ``a . b = n - 2 popcount(a xor b)``: 64 products and their sum in three instructions.
Needs the extra ``xnor``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from torch import Tensor

WORD = 64  # signs
ONES = np.uint64(2**WORD - 1)

Words = npt.NDArray[np.uint64]
Sums = npt.NDArray[np.int32]


@intrinsic
def _popcount(context: Any, word: types.Type) -> Any:
    """The number of ones, by LLVM's instruction for it, which becomes one of AVX-512 where the processor has it."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return builder.call(builder.module.declare_intrinsic("llvm.ctpop", [arguments[0].type]), arguments)

    return word(word), generate


@njit
def _differing_bits(rows: Words, columns: Words, out: Sums) -> None:  # pragma: no cover: compiled
    """``out[i, j] = sum over k of popcount(rows[i, k] xor columns[k, j])``: ``[O, K]``, ``[K, P]``, ``[O, P]``.

    Four words at a time, so that ``out`` is read and written a quarter as often; neighbouring ``j`` fill the lanes.
    """
    length, width = columns.shape
    in_fours = length - length % 4
    for i in range(rows.shape[0]):
        out[i] = 0
        for k in range(0, in_fours, 4):
            a, b, c, d = rows[i, k], rows[i, k + 1], rows[i, k + 2], rows[i, k + 3]
            for j in range(width):
                out[i, j] += np.int32(
                    _popcount(a ^ columns[k, j])
                    + _popcount(b ^ columns[k + 1, j])
                    + _popcount(c ^ columns[k + 2, j])
                    + _popcount(d ^ columns[k + 3, j])
                )
        for k in range(in_fours, length):
            a = rows[i, k]
            for j in range(width):
                out[i, j] += np.int32(_popcount(a ^ columns[k, j]))


@njit
def _sums(rows: Words, columns: Words, start: Sums, factor: int, out: Sums) -> None:  # pragma: no cover: compiled
    """``out[n, i] = start[i] - factor * (differing bits)``, image by image while they are in the cache."""
    for n in range(columns.shape[0]):
        _differing_bits(rows, columns[n], out[n])
        for i in range(rows.shape[0]):
            for j in range(columns.shape[2]):
                out[n, i, j] = start[i] - factor * out[n, i, j]


@njit
def _pack(x: Any, threshold: float, words: Words) -> None:  # pragma: no cover: compiled
    """Bits ``x >= threshold`` of float ``[N, C, P]`` as ``words [N, ceil(C / 64), P]``."""
    images, channels, width = x.shape
    words[:] = 0
    for n in range(images):
        for c in range(channels):
            word, bit = c // WORD, np.uint64(c % WORD)
            for j in range(width):
                words[n, word, j] |= np.uint64(x[n, c, j] >= threshold) << bit


def pack(x: Tensor, threshold: float) -> Words:
    """``x >= threshold`` of float ``[N, C, ...]`` as bits: words ``[N, ceil(C / 64), ...]``, first channel lowest."""
    images, channels, *places = x.shape
    words = np.empty((images, -(-channels // WORD), math.prod(places)), np.uint64)
    _pack(x.detach().contiguous().view(images, channels, -1).numpy(), threshold, words)
    return words.reshape(images, -1, *places)


def products(rows: Words, columns: Words, signs: int) -> Tensor:
    """``rows @ columns`` of so many signs: words ``[O, K]`` by ``[N, K, P]``, as ``int32 [N, O, P]``."""
    out = np.empty((len(columns), len(rows), columns.shape[2]), np.int32)
    _sums(rows, columns, np.full(len(rows), signs, np.int32), 2, out)
    return torch.from_numpy(out)


class BinaryConv:
    """The integer sums of a convolution of weights of -1 and 1 with activations of two codes.

    weight: codes ``[O, C, k, k]``. codes: the two of activations, (-1, 1) or (0, 1). pad: the code around the image,
    one of the two, or zero. Sums are those of ``conv2d`` on codes, exactly.

    With activations ``a = (low + high) / 2 + (high - low) / 2 * s``, signs s, ``sum w a`` follows from ``sum w s``. A
    place around the image gets the sign of its code; where it is a third code, zero beside signs, it gets -1, and the
    weights that met it are added again.
    """

    def __init__(self, weight: Tensor, codes: tuple[int, int], stride: int, padding: int, pad: int) -> None:
        outputs, channels, self.size, _ = weight.shape
        self.codes, self.stride, self.padding, self.pad = codes, stride, padding, pad
        self.signs = channels * self.size**2
        taps = weight.float().flatten(2).transpose(1, 2).reshape(outputs * self.size**2, channels, 1)
        self.words = pack(taps, 0.0).reshape(outputs, -1)  # [O, k * k * words], tap by tap, as _patches
        self.taps = weight.sum(1, keepdim=True).double()
        low, high = codes
        total = self.taps.sum((1, 2, 3)).numpy()
        self.factor = high - low  # of the bits that differ
        self.start = ((low + high) * total / 2 + (high - low) * self.signs / 2).astype(np.int32)
        self.border = pack(torch.full((1, channels, 1, 1), 1.0 if pad == codes[1] else -1.0), 0.0)

    def __call__(self, x: Tensor, threshold: float) -> Tensor:
        """``int32 [N, O, H', W']`` from float ``[N, C, H, W]``, whose code is the greater one from ``threshold`` on."""
        images, _, rows, columns = x.shape
        words = self._padded(pack(x, threshold))
        height, width = ((side + 2 * self.padding - self.size) // self.stride + 1 for side in (rows, columns))
        out = np.empty((images, len(self.words), height * width), np.int32)
        _sums(self.words, self._patches(words, height, width), self.start, self.factor, out)
        sums = torch.from_numpy(out).view(images, -1, height, width)
        return sums.add_(self._outside(rows, columns)) if self.padding and self.pad not in self.codes else sums

    def _padded(self, words: Words) -> Words:
        if not self.padding:
            return words
        images, count, rows, columns = words.shape
        around = self.padding
        padded = np.broadcast_to(self.border, (images, count, rows + 2 * around, columns + 2 * around)).copy()
        padded[:, :, around:-around, around:-around] = words
        return padded

    def _patches(self, words: Words, height: int, width: int) -> Words:
        """What each output pixel sees: ``[N, k * k * words, H' * W']``."""
        images, count = words.shape[:2]
        patches = np.empty((images, self.size, self.size, count, height, width), np.uint64)
        for i in range(self.size):
            for j in range(self.size):
                end = i + self.stride * (height - 1) + 1, j + self.stride * (width - 1) + 1
                patches[:, i, j] = words[:, :, i : end[0] : self.stride, j : end[1] : self.stride]
        return patches.reshape(images, -1, height * width)

    def _outside(self, rows: int, columns: int) -> Tensor:
        """The sum of the weights that met a place around the image: ``[O, H', W']``."""
        image = torch.ones(1, 1, rows, columns, dtype=torch.float64)
        inside = F.conv2d(image, self.taps, None, self.stride, self.padding)
        return (self.taps.sum((1, 2, 3)).view(-1, 1, 1) - inside[0]).to(torch.int32)
