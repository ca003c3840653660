"""From options to quantizers."""

from __future__ import annotations

import torch
from torch import Tensor

from repq_cli.quant.affine import AffineActivation, AffineWeight
from repq_cli.quant.binary import ScaledSignWeight, SignActivation, SignWeight, glorot_range
from repq_cli.quant.lsq import LSQ, LSQPlus
from repq_cli.quant.options import QuantOptions
from repq_cli.quant.quantizer import NoQuantizer, Quantizer
from repq_cli.quant.split import WIDE_BITS, SplitLSQ
from repq_cli.quant.ternary import TernaryWeight


def weight_quantizer(
    options: QuantOptions, shape: torch.Size, edge: bool, depthwise: bool = False, split: Tensor | None = None
) -> Quantizer:
    """The quantizer of a layer's merged weight of the given shape ``[O, I/g, ...]``.

    split: bool in that shape, where an identity lies that has codes of its own, if the others have fewer bits.
    """
    bits = options.bits("weight", edge)
    if bits == 32:
        return NoQuantizer()
    per_channel = options.granularity == "channel" or depthwise
    match options.method("weight", bits):
        case "sign":
            glorot = options.latent_range == "glorot" or (options.latent_range == "auto" and options.stochastic)
            return SignWeight(options.stochastic, glorot_range(shape) if glorot else 1.0)
        case "bwn":
            return ScaledSignWeight(per_channel)
        case "twn":
            return TernaryWeight(options.threshold, per_channel)
        case "affine":
            return AffineWeight(bits, per_channel)
    channels = shape[0] if per_channel else None
    if split is not None and bits < WIDE_BITS:
        return SplitLSQ(bits, split, channels, symmetric=options.symmetric)
    return LSQ(bits, signed=True, channels=channels, symmetric=options.symmetric)


def activation_quantizer(options: QuantOptions, signed: bool, edge: bool) -> Quantizer:
    """The quantizer of one activation tensor, shared by all its readers."""
    bits = options.bits("act", edge)
    per_sample = options.act_n == "features"
    if bits == 32:
        return NoQuantizer()
    match options.method("act", bits):
        case "sign":
            return SignActivation(options.stochastic)
        case "lsqplus":
            return LSQPlus(bits, per_sample=per_sample)
        case "affine":
            return AffineActivation(bits, options.act_momentum, options.act_delay)
    return LSQ(bits, signed=signed or options.signed_codes, per_sample=per_sample)
