"""What inference needs of a layer, and a memory of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from repq_cli.quant.functional import Grid


class FrozenWeight(NamedTuple):
    """What inference needs of a layer.

    weight      integer codes (or the float weight where ``grid`` is None) in the weight's shape
    grid        what the codes stand for
    multiplier  ``[O]``, of a batch norm that is not folded; applied to the convolution's output, before ``bias``
    bias        ``[O]`` or None; integer codes where there is a ``bias_step``
    bias_step   ``[O]`` or ``[]``: what a code of the bias is worth
    """

    weight: Tensor
    grid: Grid | None
    multiplier: Tensor | None
    bias: Tensor | None
    bias_step: Tensor | None = None

    def value(self) -> Tensor:
        """The weight that the layer multiplies with."""
        return self.weight if self.grid is None else self.grid.dequantize(self.weight)

    def bias_value(self) -> Tensor | None:
        """The bias that the layer adds."""
        return self.bias if self.bias is None or self.bias_step is None else self.bias * self.bias_step


class Inference(NamedTuple):
    """A frozen weight and the tensors that eval mode computes with."""

    frozen: FrozenWeight
    weight: Tensor
    bias: Tensor | None


class Memo:
    """A result that is kept until one of the tensors that it was computed from changes.

    Values are compared, not versions: it notices an optimiser, a loaded checkpoint and an edit by hand alike.
    """

    def __init__(self) -> None:
        self._inputs: list[Tensor] = []
        self._result: Inference | None = None

    def __call__(self, inputs: list[Tensor], compute: Callable[[], FrozenWeight]) -> Inference:
        """The frozen weight and its values, recomputed if ``inputs`` changed."""
        if self._result is None or not self._unchanged(inputs):
            frozen = compute()
            self._result = Inference(frozen, frozen.value(), frozen.bias_value())
            self._inputs = [tensor.detach().clone() for tensor in inputs]
        return self._result

    def _unchanged(self, inputs: list[Tensor]) -> bool:
        def same(a: Tensor, b: Tensor) -> bool:
            return a.device == b.device and a.dtype == b.dtype and torch.equal(a, b)

        return len(inputs) == len(self._inputs) and all(map(same, inputs, self._inputs))

    def clear(self) -> None:
        """Forget the result and free its memory."""
        self._inputs, self._result = [], None
