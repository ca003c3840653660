"""How convolutions walk over their input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

Span = int | tuple[int, int]  # rows and columns
Around = int | tuple[int, int] | tuple[int, int, int, int]  # or top, left, bottom, right


class Window(NamedTuple):
    """How a convolution walks over its input. output_padding: of a transposed one; None: it is none."""

    stride: Span
    padding: Span
    groups: int
    dilation: Span = 1
    output_padding: Span | None = None


def turned(weight: Tensor, groups: int) -> Tensor:
    """``[O, I/g, kh, kw]`` as ``[I, O/g, kh, kw]``, as torch has weights of transposed convolutions; and back."""
    outputs, inputs, *sizes = weight.shape
    apart = weight.view(groups, outputs // groups, inputs, *sizes)
    return apart.transpose(1, 2).reshape(groups * inputs, outputs // groups, *sizes)


def pair(span: Span) -> tuple[int, int]:
    """Rows and columns.

    >>> pair(3), pair((1, 2))
    ((3, 3), (1, 2))
    """
    return (span, span) if isinstance(span, int) else (span[0], span[1])


def places(
    extents: Sequence[int], sizes: Sequence[int], steps: Span, dilations: Span, padding: Sequence[int]
) -> list[int]:
    """How many rows and columns of places a window has; nothing where it fits nowhere, or where there is no map.

    padding: of both sides together.

    >>> places([8, 9], [3, 3], 2, 1, [2, 2]), places([8, 9], [3, 3], 1, (1, 4), [0, 0])
    ([4, 5], [6, 1])
    >>> places([2, 2], [3, 3], 1, 1, [0, 0])
    []
    """
    if len(extents) != 2:
        return []
    rows = zip(extents, sizes, pair(steps), pair(dilations), padding, strict=True)
    left = [(extent + more - (size - 1) * dilation - 1, step) for extent, size, step, dilation, more in rows]
    return [] if min(left)[0] < 0 else [rest // step + 1 for rest, step in left]


def torch_padding(padding: Around) -> tuple[int, int, int, int]:
    """Left, right, top, bottom: as ``F.pad`` wants it.

    >>> torch_padding(1), torch_padding((1, 2)), torch_padding((1, 2, 3, 4))
    ((1, 1, 1, 1), (2, 2, 1, 1), (2, 4, 1, 3))
    """
    if isinstance(padding, int) or len(padding) == 2:
        rows, columns = pair(padding)
        return columns, columns, rows, rows
    top, left, bottom, right = padding
    return left, right, top, bottom
