"""``twn``: ternary weights (arXiv 1605.04711)."""

from __future__ import annotations

from torch import Tensor

from repq_cli.quant.binary import shared_dims
from repq_cli.quant.functional import Grid, IntegerRange, ternarize, ternary_fake_quantize
from repq_cli.quant.quantizer import Quantizer


class TernaryWeight(Quantizer):
    """``alpha * {-1, 0, 1}``: zero up to a threshold, ``alpha`` the mean magnitude beyond it, anew at every step.

    ``threshold``: as a multiple of the mean magnitude; 0.7 in the published code and the first versions of the paper,
    0.75 in its third. One for the tensor, as in that code, or one per filter, as in the third version.
    """

    bits, signed, codes = 2, True, IntegerRange(-1, 1)

    def __init__(self, threshold: float = 0.7, per_filter: bool = False) -> None:
        super().__init__()
        self.threshold, self.per_filter = threshold, per_filter

    def grid(self, values: Tensor) -> Grid:
        """``alpha``."""
        return Grid(self._ternarize(values)[1])

    def integers_on(self, grid: Grid, values: Tensor) -> Tensor:
        """-1, 0 or 1 by the threshold whatever the grid, in the dtype of ``values``."""
        return self._ternarize(values)[0]

    def fake_quantize(self, values: Tensor) -> Tensor:
        return ternary_fake_quantize(values, self.threshold, shared_dims(values, self.per_filter))

    def _ternarize(self, values: Tensor) -> tuple[Tensor, Tensor]:
        return ternarize(values, self.threshold, shared_dims(values, self.per_filter))
