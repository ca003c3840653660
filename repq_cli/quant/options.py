"""The ``quant`` section of the configuration. No torch here, so that a mistake is reported at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from repq_cli.bounds import Range

Bits = Literal[1, 2, 3, 4, 5, 6, 7, 8, 32]
Tensors = Literal["weight", "act"]

# The widths for which each method is defined.
METHOD_BITS: dict[Tensors, dict[str, tuple[int, ...]]] = {
    "weight": {"lsq": (*range(1, 9),), "sign": (1,), "bwn": (1,), "twn": (2,), "affine": (*range(2, 9),)},
    "act": {"lsq": (*range(1, 9),), "lsqplus": (*range(2, 9),), "sign": (1,), "affine": (*range(2, 9),)},
}


@dataclass(frozen=True)
class QuantOptions:
    """Which tensors are quantized, how and to how many bits, and how steps start.

    weight_method: ``lsq``, ``sign`` (BinaryConnect, BNN: 1 bit without a scale), ``bwn`` (BWN, XNOR-Net: 1 bit, mean
        magnitude as scale), ``twn`` (ternary: 2 bits) or ``affine`` (integer-only: zero-point, minimum and maximum).
    act_method: ``lsq``, ``lsqplus`` (with a learned offset), ``sign`` (-1 and 1) or ``affine`` (moving range).
    weight_bits, act_bits: 1..8, or 32 for no quantization.
    granularity: one weight step per output ``channel`` or per ``tensor`` (depthwise layers: always per channel);
        activations: tensor.
    first_last: the first and the last layer's weights and inputs at ``8`` bit, in ``fp``, or the ``same`` as the rest;
        ``inputs8``: their inputs at 8 bit, their weights the same as the rest.
    residual: shortcuts read the codes (``int``) or the tensor before its quantizer (``fp``, LSQ's own placement);
        without effect in networks that have no shortcuts once they are merged, such as RepVGG.
    summands: what a sum adds beside a shortcut's codes: codes of ``8`` bits as well, so that integers are added and the
        layer in front is one kernel, or the ``fp`` sums of that layer. ``fp`` where shortcuts do not read codes, and
        where activations are of one bit.
    output: the network's output (of super-resolution) ``float``, or ``int8``: 8 bit codes up to the last pixel.
    act_n: (LSQ) the N of the activations' gradient scale: the ``features`` of one sample, or ``numel`` of the batch.
    init: (LSQ) initial steps by ``min_error`` (least squared error) or by ``lsq``'s rule.
    symmetric: (LSQ weights) without the lowest code: {-1, 0, 1} at 2 bits.
    stochastic: (sign) draw signs at random in training.
    latent_range: (sign weights) H, to which float weights are clipped: ``one``, or ``glorot``, the size of freshly
        initialised ones, as in BinaryConnect's code; ``auto``: glorot where signs are drawn, which against one would be
        those of a coin.
    pad_value: (sign activations) what convolutions pad codes with: 0, as published code does, or -1 or 1, since a
        kernel of XNOR and popcount has no zero.
    input_scale: (sign activations) XNOR-Net's K: outputs times the mean magnitude of what each position saw.
    threshold: (TWN) up to which multiple of the mean magnitude weights become zero.
    act_momentum, act_delay: (affine) of the moving range; training steps before activations are quantized.
    signed_codes: (LSQ) activations have codes below zero even where no value is: half of what they have room for, in
        exchange for codes that need no zero-point where the type is int8 (``repq export zero_points=none``).
    int32_bias: biases are integers of what the int8 kernel's sums are worth, a batch norm behind them included: see
        ``int32_bias.py``.
    layers: bits of single layers, ``{"blocks.17": 8, "stages.3.*": 6}``: of their weights and of the tensors that they
        read, which have those of the widest reader. Names as ``repq info`` has them, ``*`` for anything; of several
        that fit a layer the last one counts.
    """

    weight_method: Literal["lsq", "sign", "bwn", "twn", "affine"] = "lsq"
    act_method: Literal["lsq", "lsqplus", "sign", "affine"] = "lsq"
    weight_bits: Bits = 8
    act_bits: Bits = 8
    granularity: Literal["channel", "tensor"] = "channel"
    first_last: Literal[8, "fp", "same", "inputs8"] = 8
    residual: Literal["int", "fp"] = "int"
    summands: Literal[8, "fp"] = 8
    output: Literal["float", "int8"] = "float"
    act_n: Literal["features", "numel"] = "features"
    init: Literal["min_error", "lsq"] = "min_error"
    symmetric: bool = False
    stochastic: bool = False
    latent_range: Literal["auto", "one", "glorot"] = "auto"
    pad_value: Literal[-1, 0, 1] = 0
    input_scale: bool = False
    threshold: Annotated[float, Range(0, 2)] = 0.7
    act_momentum: Annotated[float, Range(0, 1)] = 0.99
    act_delay: Annotated[int, Range(0)] = 0
    signed_codes: bool = False
    int32_bias: bool = True
    layers: dict[str, Bits] | None = None

    def alone(self, bits: Bits) -> QuantOptions:
        """These options for one layer of so many bits, whether it is the first, the last or any other."""
        return replace(self, weight_bits=bits, act_bits=bits, first_last="same", layers=None)

    def bits(self, of: Tensors, edge: bool) -> Bits:
        """The width of a layer's weight or input; ``edge`` marks the first and the last layer."""
        bits = self.weight_bits if of == "weight" else self.act_bits
        same = self.first_last == "same" or (self.first_last == "inputs8" and of == "weight")
        if not edge or same or bits == 32:
            return bits
        return 32 if self.first_last == "fp" else 8

    def method(self, of: Tensors, bits: int) -> str:
        """The method for a tensor of so many bits: the one that was asked for, or LSQ where it has no such width."""
        method = self.weight_method if of == "weight" else self.act_method
        return method if bits in METHOD_BITS[of][method] else "lsq"

    @property
    def adds_codes(self) -> bool:
        """Whether both summands of a shortcut's sum are codes."""
        return self.summands == 8 and self.residual == "int" and 1 < self.act_bits < 32

    @property
    def label(self) -> str:
        """``w4a4``, or ``fp32``."""
        return "fp32" if (self.weight_bits, self.act_bits) == (32, 32) else f"w{self.weight_bits}a{self.act_bits}"

    @property
    def signs_of_activations(self) -> bool:
        """Whether activations are -1 and 1."""
        return self.act_method == "sign" and self.act_bits == 1

    @property
    def signs_of_weights(self) -> bool:
        """Whether weights are -1 and 1, without a scale."""
        return self.weight_method == "sign" and self.weight_bits == 1
