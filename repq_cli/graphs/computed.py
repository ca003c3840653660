"""Convolutions whose weight is made of parameters rather than one: weight standardisation, a linear layer's matrix."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

Span = int | Sequence[int]


class AsKernel(nn.Module):
    """The matrix ``[O, I]`` of a linear layer as a 1x1 kernel ``[O, I, 1, 1]``."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix = matrix  # a parameter

    def forward(self) -> Tensor:
        return self.matrix[:, :, None, None]


class ComputedConv(nn.Conv2d):
    """A convolution with ``weight = made()``, ``[O, I/g, kh, kw]``, anew at every call; ``shape``: that of the weight.

    Whatever merges, quantizes and trains convolutions reads ``weight``, and gradients reach what it is made of.
    """

    def __init__(
        self,
        made: nn.Module,
        shape: Sequence[int],
        bias: nn.Parameter | None = None,
        stride: Span = 1,
        padding: Span | str = 0,
        dilation: Span = 1,
        groups: int = 1,
    ) -> None:
        nn.Module.__init__(self)  # torch's own would make a weight
        self.made = made
        self.register_parameter("bias", bias)
        self.out_channels, self.in_channels = shape[0], shape[1] * groups
        self.kernel_size, self.groups, self.padding_mode = _two(shape[2:]), groups, "zeros"
        self.stride, self.dilation = _two(stride), _two(dilation)
        self.padding = padding if isinstance(padding, str) else _two(padding)
        self.transposed, self.output_padding = False, (0, 0)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """What it convolves with."""
        kernel: Tensor = self.made()
        return kernel


def _two(numbers: Span) -> tuple[int, int]:
    rows, columns = (numbers, numbers) if isinstance(numbers, int) else numbers
    return rows, columns
