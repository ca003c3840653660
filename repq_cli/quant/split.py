"""LSQ of a merged kernel whose identity branch is quantized apart: ``rep.identity=split``."""

from __future__ import annotations

import torch
from torch import Tensor

from repq_cli.quant.functional import Grid, integer_range, quantize
from repq_cli.quant.init import Initialiser
from repq_cli.quant.learned_steps import lsq_fake_quantize
from repq_cli.quant.lsq import LSQ

WIDE_BITS = 8
WIDE = integer_range(WIDE_BITS, signed=True)
STEPS_TRIED = 33


class SplitLSQ(LSQ):
    """LSQ with codes of 8 bits where the merged kernel holds an identity, and of ``bits`` everywhere else.

    A merged kernel ``W = R + diag(d)`` of an identity branch and all others has one tap in each output channel that is
    up to ``sqrt(k^2 I/g)`` times the rms: one step either clips it or rounds all others to zero. Here
    ``W^ = s (clip_b(round(W / s)) off the identity's taps, clip_8(round(W / s)) on them)``. Both kinds are multiples of
    one step, so that a layer ships as one convolution with int32 sums, for ``1 / (k^2 I/g)`` more products of 8 bit;
    the files hold the taps' codes beyond ``b`` bits beside the packed ones.

    split: bool ``[O, I/g, k, k]``, where the identity's ones lie. Gradients: those of LSQ, each tap by its own range.
    Source: ours; arXiv 2311.05317 quantizes ``W`` as a whole.
    """

    split: Tensor

    def __init__(self, bits: int, split: Tensor, channels: int | None = None, *, symmetric: bool = False) -> None:
        super().__init__(bits, signed=True, channels=channels, symmetric=symmetric)
        if not 2 <= bits < WIDE_BITS:
            raise ValueError(f"An identity is split from codes of 2 to {WIDE_BITS - 1} bits, not of {bits}.")
        self.register_buffer("split", split, persistent=False)

    @torch.no_grad()
    def calibrate(self, values: Tensor, initialiser: Initialiser = "min_error") -> None:
        """The best steps between those that suit all other taps and those that clip no identity."""
        super().calibrate(values.masked_fill(self.split, 0), initialiser)
        suited = self.step_for(values)
        dims = list(range(0 if self.channels is None else 1, values.dim()))
        unclipped = (values * self.split).abs().amax(dims, keepdim=True) / WIDE.high
        ratio = (unclipped.view_as(suited) / suited).clamp_min(1)
        best, least = suited, torch.full_like(suited, torch.inf)
        for share in torch.linspace(0, 1, STEPS_TRIED).tolist():
            grid = Grid(suited * ratio**share)
            error = (grid.dequantize(self.integers_on(grid, values)) - values).square().sum(dims, keepdim=True)
            better = error.view_as(suited) < least
            best, least = torch.where(better, grid.step, best), torch.where(better, error.view_as(suited), least)
        self.raw_step.copy_(best.view_as(self.raw_step))

    def fake_quantize(self, values: Tensor) -> Tensor:
        wide = lsq_fake_quantize(values, self.step_for(values), WIDE, self.grad_scale(values))
        return torch.where(self.split, wide, super().fake_quantize(values))

    def integers_on(self, grid: Grid, values: Tensor) -> Tensor:
        """The codes of ``values`` on another grid than their own, those of the identity's taps among ``WIDE``."""
        return torch.where(self.split, quantize(values, grid, WIDE), super().integers_on(grid, values))

    def beyond(self, rounded: Tensor) -> Tensor:
        wide = (rounded < WIDE.low) | (rounded > WIDE.high)
        return torch.where(self.split, wide, super().beyond(rounded))

    @property
    def fineness(self) -> int:
        """Codes of the identity are int8 as they are."""
        return 1

    @property
    def kind(self) -> str:
        """``4 bit, signed; identity 8 bit``."""
        return f"{super().kind}; identity {WIDE_BITS} bit"
