"""Integer codes of 1, 2, 4 or 8 bits, several to a byte."""

from __future__ import annotations

import torch
from torch import Tensor


def packed_bits(bits: int) -> int:
    """The storage width of a ``bits``-bit code: 1, 2, 4 or 8.

    >>> [packed_bits(bits) for bits in (1, 2, 3, 4, 5, 8)]
    [1, 2, 4, 4, 8, 8]
    """
    return next(width for width in (1, 2, 4, 8) if bits <= width)


def pack(codes: Tensor, bits: int, low: int) -> Tensor:
    """Codes (integers from ``low``, any shape) as ``uint8 [ceil(n * width / 8)]``, first code in the lowest bits.

    One bit: ``low`` is 0 for the codes 0 and 1, or -1 for -1 and 1.
    """
    width = packed_bits(bits)
    per_byte = 8 // width
    offset = ((codes.flatten().to(torch.int64) - low) // _spacing(bits, low)).to(torch.uint8)
    padding = -len(offset) % per_byte
    groups = torch.cat([offset, offset.new_zeros(padding)]).view(-1, per_byte)
    shifts = torch.arange(per_byte, dtype=torch.uint8) * width
    return (groups << shifts).sum(1, dtype=torch.uint8)


def unpack(packed: Tensor, bits: int, low: int, shape: list[int]) -> Tensor:
    """The codes of ``pack`` as ``int16`` in ``shape``."""
    width = packed_bits(bits)
    shifts = torch.arange(8 // width, dtype=torch.uint8) * width
    offset = (packed.unsqueeze(1) >> shifts) & (2**width - 1)
    count = int(torch.tensor(shape).prod())
    return offset.flatten()[:count].to(torch.int16).mul_(_spacing(bits, low)).add_(low).view(shape)


def _spacing(bits: int, low: int) -> int:
    """From code to code: -1 and 1 are two apart."""
    return 2 if bits == 1 and low < 0 else 1
