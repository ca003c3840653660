"""What inference needs of a layer."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from repq_cli.quant.functional import Grid
from repq_cli.quant.sums import codes_of, per_channel, sums_of_codes, weighted_sums
from repq_cli.quant.windows import Window


class FrozenWeight(NamedTuple):
    """What inference needs of a layer.

    weight      integer codes (or the float weight where ``grid`` is None) in the weight's shape
    grid        what the codes stand for
    multiplier  ``[O]``, of a batch norm that is not folded; applied to the convolution's output, before ``bias``
    bias        ``[O]`` or None; integer codes where there is a ``bias_step``
    bias_step   ``[O]`` or ``[]``: what a code of the bias is worth
    merged      the weight before it was quantized
    """

    weight: Tensor
    grid: Grid | None
    multiplier: Tensor | None
    bias: Tensor | None
    bias_step: Tensor | None
    merged: Tensor

    def value(self) -> Tensor:
        """The weight that the codes stand for."""
        return self.weight if self.grid is None else self.grid.dequantize(self.weight)

    def bias_value(self) -> Tensor | None:
        """The bias that its codes stand for."""
        return self.bias if self.bias is None or self.bias_step is None else self.bias * self.bias_step

    def inference(self, step: Tensor | None, bias_last: bool) -> Inference:
        """What eval mode computes with, given the step of the input's codes, if it has any.

        bias_last: something is multiplied in between, so that a bias cannot be one of the sums'.
        """
        if step is None or self.grid is None:
            inside = self.multiplier is None and not bias_last
            step, weight, factor = None, self.value(), self.multiplier
        else:
            inside = self.bias_step is not None and not bias_last
            weight, factor = self.grid.from_zero(self.weight), self.grid.step.flatten() * step
            factor = factor if self.multiplier is None else factor * self.multiplier
        if inside:
            bias = self.bias
            if bias is not None and self.bias_step is not None and factor is not None:
                bias = bias * (self.bias_step / factor)  # a power of two: exact
            return Inference(self, step, weight, bias, factor, None)
        return Inference(self, step, weight, None, factor, self.bias_value())


class Inference(NamedTuple):
    """What eval mode computes with: ``sums(x, weight, summed_bias) * factor + bias``, each where there is one.

    step    that of ``x``, whose codes are summed, times those of the weight; None: ``x`` and ``weight`` are values
    """

    frozen: FrozenWeight
    step: Tensor | None
    weight: Tensor
    summed_bias: Tensor | None
    factor: Tensor | None
    bias: Tensor | None

    def __call__(self, x: Tensor, window: Window | None, scale: Tensor | None = None) -> Tensor:
        """The layer's output before its activation. scale: one more factor, of each place."""
        if self.step is None:
            y = weighted_sums(x, self.weight, self.summed_bias, window)
        else:
            y = sums_of_codes(codes_of(x, self.step), self.weight, self.summed_bias, window)
        y = y if self.factor is None else y.mul_(per_channel(self.factor, y))
        y = y if scale is None else y.mul_(scale)
        return y if self.bias is None else y.add_(per_channel(self.bias, y))
