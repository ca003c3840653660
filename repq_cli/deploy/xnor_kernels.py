"""The loops over packed words: bits that differ are counted for ``PIXELS`` places and ``OUTPUTS`` channels at once.

They are vectors of LLVM, in registers, which it makes instructions of for any processor. Maps are words
``[N, H, W, words]``, the first channel in the lowest bit. Needs the extra ``xnor``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

WORD = 64  # signs
LANES = 8  # words of a vector
PIXELS, OUTPUTS = 4, 16  # of a tile

Words = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
Distances = tuple[int, int]  # of rows and of columns that a kernel steps over, in words


def _pointer(context: Any, builder: ir.IRBuilder, kind: Any, array: Any, index: Any) -> Any:
    """Where an array's data has its element of that index."""
    return builder.gep(context.make_array(kind)(context, builder, array).data, [index])


@intrinsic
def _count(context: Any, x: Any, at: Any, step: Any, places: Any, weights: Any, block: Any, out: Any) -> Any:
    """``out[p * OUTPUTS + o] = sum over k of popcount(x[at + p * step + places[k]] xor weights[block, k, o])``."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        x, at, step, places, weights, block, out = arguments
        kinds = dict(zip(("x", "at", "step", "places", "weights", "block", "out"), signature.args, strict=True))
        word, index = ir.IntType(64), at.type
        vector = ir.VectorType(word, LANES)
        of_vector = ir.FunctionType(vector, [vector])
        popcount = cgutils.get_or_insert_function(builder.module, of_vector, f"llvm.ctpop.v{LANES}i{WORD}")
        parts = OUTPUTS // LANES
        length = builder.extract_value(context.make_array(kinds["places"])(context, builder, places).shape, 0)
        first = builder.mul(builder.mul(block, length), index(OUTPUTS))

        before, body, end = builder.block, builder.append_basic_block("words"), builder.append_basic_block("counted")
        builder.branch(body)
        builder.position_at_end(body)
        k = builder.phi(index)
        k.add_incoming(index(0), before)
        sums = [builder.phi(vector) for _ in range(PIXELS * parts)]
        place = builder.load(_pointer(context, builder, kinds["places"], places, k))
        row = builder.add(first, builder.mul(k, index(OUTPUTS)))
        taps = []
        for part in range(parts):
            start = _pointer(context, builder, kinds["weights"], weights, builder.add(row, index(part * LANES)))
            taps.append(builder.load(builder.bitcast(start, vector.as_pointer()), align=8))
        found = []
        for pixel in range(PIXELS):
            here = builder.add(builder.add(at, place), builder.mul(step, index(pixel)))
            one = builder.load(_pointer(context, builder, kinds["x"], x, here))
            single = builder.insert_element(ir.Constant(vector, ir.Undefined), one, ir.IntType(32)(0))
            zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
            same = builder.shuffle_vector(single, ir.Constant(vector, ir.Undefined), zeros)
            for part, tap in enumerate(taps):
                ones = builder.call(popcount, [builder.xor(same, tap)])
                found.append(builder.add(sums[pixel * parts + part], ones))
        for total, more in zip(sums, found, strict=True):
            total.add_incoming(ir.Constant(vector, [0] * LANES), before)
            total.add_incoming(more, body)
        after = builder.add(k, index(1))
        k.add_incoming(after, body)
        builder.cbranch(builder.icmp_signed("<", after, length), body, end)
        builder.position_at_end(end)
        for number, more in enumerate(found):
            start = _pointer(context, builder, kinds["out"], out, index(number * LANES))
            builder.store(more, builder.bitcast(start, vector.as_pointer()), align=8)
        return context.get_dummy_value()

    return types.void(x, at, step, places, weights, block, out), generate


@intrinsic
def _compared(context: Any, values: Any, at: Any, limits: Any, first: Any) -> Any:
    """Eight bits: ``values[at + b] <= limits[first + b]`` of int64, ``>=`` of float32."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        values, at, limits, first = arguments
        is_float = signature.args[0].dtype == types.float32
        vector = ir.VectorType(ir.FloatType() if is_float else ir.IntType(64), LANES)
        sides = []
        for kind, array, index in ((signature.args[0], values, at), (signature.args[2], limits, first)):
            start = builder.bitcast(_pointer(context, builder, kind, array, index), vector.as_pointer())
            sides.append(builder.load(start, align=4 if is_float else 8))
        bits = builder.fcmp_ordered(">=", *sides) if is_float else builder.icmp_signed("<=", *sides)
        return builder.bitcast(bits, ir.IntType(LANES))

    return types.uint8(values, at, limits, first), generate


@njit
def sums(
    x: Words,
    places: Ints,
    weights: Words,
    offsets: Ints,
    channels: Ints,
    start: Ints,
    kinds: Ints,
    factor: int,
    step: Distances,
    out: Any,
) -> None:  # pragma: no cover: compiled
    """``out[n, y, x, c] = start[kinds[y, x], c] - factor * (differing bits)``.

    x: padded words ``[N, words]``. places: how far behind a place's first word the words lie that it reads; offsets: by
    block of outputs, how much further. channels: the output channel of a block's, -1 of none.
    """
    counts = np.empty(PIXELS * OUTPUTS, np.int64)
    images, rows, columns, _ = out.shape
    for n in range(images):
        for block in range(weights.shape[0]):
            for i in range(rows):
                for j in range(0, columns, PIXELS):
                    at = i * step[0] + j * step[1] + offsets[block]
                    _count(x[n], at, step[1], places, weights, block, counts)
                    for p in range(min(PIXELS, columns - j)):
                        kind = kinds[i, j + p]
                        for o in range(OUTPUTS):
                            c = channels[block, o]
                            if c >= 0:
                                out[n, i, j + p, c] = start[kind, c] - factor * counts[p * OUTPUTS + o]


@njit
def signs(
    x: Words,
    places: Ints,
    weights: Words,
    limits: Ints,
    flips: Bytes,
    kinds: Ints,
    choice: Bytes,
    step: Distances,
    out: Bytes,
) -> None:  # pragma: no cover: compiled
    """``out[n, y, x]``: bytes of the bits ``differing bits <= limits[c, kinds[y, x], o]``, xor flips.

    choice: bytes as ``out``'s, whose bits say of each output which of two limits counts; empty where there is one.
    """
    counts = np.empty(PIXELS * OUTPUTS, np.int64)
    images, rows, columns, _ = out.shape
    outputs, length = limits.shape[2], limits.shape[1] * limits.shape[2]
    flat = limits.reshape(-1)
    chosen = choice.size > 0
    for n in range(images):
        for block in range(weights.shape[0]):
            for i in range(rows):
                for j in range(0, columns, PIXELS):
                    _count(x[n], i * step[0] + j * step[1], step[1], places, weights, block, counts)
                    for p in range(min(PIXELS, columns - j)):
                        first = kinds[i, j + p] * outputs + block * OUTPUTS
                        for part in range(OUTPUTS // LANES):
                            byte = block * (OUTPUTS // LANES) + part
                            at = p * OUTPUTS + part * LANES
                            bits = _compared(counts, at, flat, first + part * LANES)
                            if chosen:
                                others = _compared(counts, at, flat, length + first + part * LANES)
                                which = choice[n, i, j + p, byte]
                                bits = (bits & ~which) | (others & which)
                            out[n, i, j + p, byte] = bits ^ flips[byte]


@njit
def pack(x: Any, limits: Any, flips: Bytes, out: Bytes) -> None:  # pragma: no cover: compiled
    """Bytes of the bits ``x[p, c] >= limits[c]``, xor flips; float ``[P, C]`` as ``[P, bytes]``."""
    places, channels = x.shape
    flat, whole = x.reshape(-1), channels // LANES
    for p in range(places):
        for byte in range(whole):
            out[p, byte] = _compared(flat, p * channels + byte * LANES, limits, byte * LANES) ^ flips[byte]
        if channels % LANES:
            bits = 0
            for c in range(whole * LANES, channels):
                bits |= (1 if x[p, c] >= limits[c] else 0) << (c % LANES)
            out[p, whole] = bits ^ flips[whole]


@njit
def pool(x: Words, size: int, stride: int, padding: int, out: Words) -> None:  # pragma: no cover: compiled
    """The greatest bit of every window of words ``[N, H, W, words]``."""
    images, rows, columns, words = out.shape
    for n in range(images):
        for i in range(rows):
            for j in range(columns):
                for a in range(max(i * stride - padding, 0), min(i * stride - padding + size, x.shape[1])):
                    for b in range(max(j * stride - padding, 0), min(j * stride - padding + size, x.shape[2])):
                        for w in range(words):
                            out[n, i, j, w] |= x[n, a, b, w]


@njit
def regroup(x: Words, channels: int, groups: int, out: Words) -> None:  # pragma: no cover: compiled
    """Words whose groups of channels begin with a word each, of words ``[P, words]`` without gaps."""
    size, words = channels // groups, out.shape[1] // groups
    for p in range(x.shape[0]):
        for c in range(channels):
            bit = (x[p, c // WORD] >> np.uint64(c % WORD)) & np.uint64(1)
            group, inner = divmod(c, size)
            out[p, group * words + inner // WORD] |= bit << np.uint64(inner % WORD)
