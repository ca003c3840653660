"""From options to quantizers."""

from __future__ import annotations

from repq_cli.quant.lsq import LSQ
from repq_cli.quant.options import QuantOptions
from repq_cli.quant.quantizer import NoQuantizer, Quantizer

METHODS = {"lsq": LSQ}


def weight_quantizer(options: QuantOptions, out_channels: int, edge: bool) -> Quantizer:
    """The quantizer of a layer's merged weight ``[O, ...]``: signed, per output channel unless asked otherwise."""
    bits = options.bits("weight", edge)
    if bits == 32:
        return NoQuantizer()
    channels = out_channels if options.granularity == "channel" else None
    return METHODS[options.weight_method](bits, signed=True, channels=channels)


def activation_quantizer(options: QuantOptions, signed: bool, edge: bool) -> Quantizer:
    """The quantizer of one activation tensor, shared by all its readers."""
    bits = options.bits("act", edge)
    if bits == 32:
        return NoQuantizer()
    return METHODS[options.act_method](bits, signed=signed, per_sample=options.act_n == "features")
