"""``lsq``: learned step size quantization, 1 to 8 bits (arXiv 1902.08153); ``lsqplus``: with a learned offset."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from repq_cli import collective
from repq_cli.quant.functional import (
    SMALLEST_STEP,
    Grid,
    IntegerRange,
    binarize,
    integer_range,
    lsq_binary_fake_quantize,
    offset_zero_point,
)
from repq_cli.quant.init import INITIALISERS, Initialiser, min_error_offset
from repq_cli.quant.learned_steps import lsq_fake_quantize, lsq_plus_fake_quantize
from repq_cli.quant.quantizer import Quantizer


class LSQ(Quantizer):
    """A tensor's quantizer: learned positive steps, one for the tensor or one per output channel.

    Parameters
        bits      1..8; one signed bit is ``step * sign(values)``
        signed    codes ``-2^(b-1) .. 2^(b-1)-1``, else ``0 .. 2^b-1``
        channels  None: one step, shape ``[]``; C: one step per slice of dimension 0, shape ``[C]``
        per_sample  (activations) count the elements of one sample in the gradient scale, else those of a whole batch;
                    None: those of the tensor
        symmetric  without the lowest signed code

    Source: arXiv 1902.08153. The gradient scale is ``1 / sqrt(N * high)``, with N the elements that share a step.
    At one signed bit the paper's highest code would be 0, and its step and gradient scale divisions by it: the codes
    are -1 and 1 instead, as in arXiv 1603.05279 with a learned alpha.
    """

    def __init__(
        self,
        bits: int,
        signed: bool,
        channels: int | None = None,
        *,
        per_sample: bool | None = None,
        symmetric: bool = False,
    ) -> None:
        super().__init__()
        if not 1 <= bits <= 8:
            raise ValueError(f"LSQ is defined for 1 to 8 bits, not for bits={bits}.")
        self.bits, self.signed, self.channels, self.per_sample = bits, signed, channels, per_sample
        self.by_sign = signed and bits == 1
        self.codes = IntegerRange(-1, 1) if self.by_sign else integer_range(bits, signed, symmetric)
        self.raw_step = nn.Parameter(torch.ones(() if channels is None else (channels,)))

    def step(self) -> Tensor:
        """The steps, positive by construction: ``max(|raw_step|, 1e-8)``."""
        return self.raw_step.abs().clamp_min(SMALLEST_STEP)

    def step_for(self, values: Tensor) -> Tensor:
        """The steps in a shape that broadcasts against ``values``."""
        step = self.step()
        return step if self.channels is None else step.view(-1, *[1] * (values.dim() - 1))

    def grid(self, values: Tensor) -> Grid:
        """Multiples of the steps."""
        return Grid(self.step_for(values))

    @torch.no_grad()
    def calibrate(self, values: Tensor, initialiser: Initialiser = "min_error") -> None:
        """Set the steps from a tensor: the merged kernel, or the first batch of an activation."""
        rows = values.reshape(1 if self.channels is None else self.channels, -1)
        # The step of least error for -1 and 1, and LSQ's own rule up to its factor 2 / sqrt(high).
        step = (
            rows.abs().mean(1).clamp_min(SMALLEST_STEP) if self.by_sign else INITIALISERS[initialiser](rows, self.codes)
        )
        self.raw_step.copy_(step.view_as(self.raw_step))

    def grad_scale(self, values: Tensor) -> float:
        """``1 / sqrt(N * high)``."""
        count = values.numel() // (self.channels or 1)
        if self.per_sample is not None and self.channels is None:
            count = values[0].numel() * (1 if self.per_sample else collective.images_of_update(values.shape[0]))
        return 1 / math.sqrt(count * self.codes.high)

    def forward(self, values: Tensor) -> Tensor:
        """``fake_quantize``, which computes in float32 what it must and stores the values as they came."""
        return super().forward(values) if self.by_sign else self.fake_quantize(values)

    def fake_quantize(self, values: Tensor) -> Tensor:
        if self.by_sign:
            return lsq_binary_fake_quantize(values, self.step_for(values), self.grad_scale(values))
        return lsq_fake_quantize(values, self.step_for(values), self.codes, self.grad_scale(values))

    def integers_on(self, grid: Grid, values: Tensor) -> Tensor:
        """The codes of ``values``, in their dtype; signs whatever the grid."""
        return binarize(values) if self.by_sign else super().integers_on(grid, values)

    def extra_repr(self) -> str:
        return f"{self.kind}, {'per tensor' if self.channels is None else 'per channel'}"


class LSQPlus(LSQ):
    """LSQ of an activation with a learned offset, for tensors whose negative values are few or small.

    Codes ``0 .. 2^b-1`` stand for ``(code - zero_point) * step``. Source: arXiv 2004.09576. The offset is rounded to a
    multiple of the step, see ``lsq_plus_fake_quantize``.
    """

    def __init__(self, bits: int, *, per_sample: bool | None = None) -> None:
        super().__init__(bits, signed=False, per_sample=per_sample)
        self.signed = True  # by its offset
        self.raw_offset = nn.Parameter(torch.zeros(()))

    def grid(self, values: Tensor) -> Grid:
        """Multiples of the step, counted from the code of zero."""
        step = self.step()
        return Grid(step, offset_zero_point(self.raw_offset, step, self.codes))

    @torch.no_grad()
    def calibrate(self, values: Tensor, initialiser: Initialiser = "min_error") -> None:
        """Set step and offset to those of least squared error, whatever ``initialiser`` says of steps alone."""
        step, offset = min_error_offset(values, self.codes)
        self.raw_step.copy_(step)
        self.raw_offset.copy_(offset)

    def fake_quantize(self, values: Tensor) -> Tensor:
        return lsq_plus_fake_quantize(values, self.step(), self.raw_offset, self.codes, self.grad_scale(values))
