"""The ``quant`` section of the configuration. No torch here, so that a mistake is reported at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Bits = Literal[2, 3, 4, 5, 6, 7, 8, 32]


@dataclass(frozen=True)
class QuantOptions:
    """Which tensors are quantized, to how many bits, and how steps start.

    weight_bits, act_bits: 2..8, or 32 for no quantization.
    granularity: one weight step per output ``channel`` (default) or per ``tensor`` (LSQ's own); activations: tensor.
    first_last: the first and the last layer's weights and inputs at ``8`` bit, in ``fp``, or the ``same`` as the rest.
    residual: shortcuts read the codes (``int``) or the tensor before its quantizer (``fp``, LSQ's own placement);
        without effect in networks that have no shortcuts once they are merged, such as RepVGG.
    act_n: the N of the activations' gradient scale: the ``features`` of one sample, or ``numel`` of the batch.
    init: initial steps by ``min_error`` (least squared error) or by ``lsq``'s rule.
    """

    weight_method: Literal["lsq"] = "lsq"
    act_method: Literal["lsq"] = "lsq"
    weight_bits: Bits = 8
    act_bits: Bits = 8
    granularity: Literal["channel", "tensor"] = "channel"
    first_last: Literal[8, "fp", "same"] = 8
    residual: Literal["int", "fp"] = "int"
    act_n: Literal["features", "numel"] = "features"
    init: Literal["min_error", "lsq"] = "min_error"

    def bits(self, of: Literal["weight", "act"], edge: bool) -> int:
        """The width of a layer's weight or input; ``edge`` marks the first and the last layer."""
        bits = self.weight_bits if of == "weight" else self.act_bits
        if not edge or self.first_last == "same" or bits == 32:
            return bits
        return 32 if self.first_last == "fp" else 8

    @property
    def label(self) -> str:
        """``w4a4``, or ``fp32``."""
        return "fp32" if (self.weight_bits, self.act_bits) == (32, 32) else f"w{self.weight_bits}a{self.act_bits}"
