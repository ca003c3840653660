"""Brevitas' layers in place of ours; importing this needs the package."""

from __future__ import annotations

from typing import Any

import brevitas.nn as layers
import brevitas.quant as schemes
import torch
from torch import Tensor, nn

from repq_cli.bench.peers import Replacements, conv_and_norm
from repq_cli.quant.layers import QuantLayer
from repq_cli.quant.lsq import LSQ
from repq_cli.quant.quantizer import Quantizer
from repq_cli.reparam.block import Block


class _OfOneInput(nn.Module):
    """Modules in a row that are called as a block is: the tensor before its quantizer is of no use here."""

    def __init__(self, *inner: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(*inner)

    def forward(self, x: Tensor, raw: Tensor | None = None) -> Tensor:
        return self.inner(x)


def _conv(block: Block, ours: QuantLayer) -> nn.Module:
    old, norm = conv_and_norm(block)
    geometry = block.geometry
    new = layers.QuantConv2d(
        geometry.in_channels,
        geometry.out_channels,
        geometry.sizes,
        geometry.strides,
        geometry.paddings,
        groups=geometry.groups,
        bias=old.bias is not None,
        **_weight_options(ours.quantizer),
    )
    return _OfOneInput(_with_weights(new, old), norm or nn.Identity(), block.activation)


def _linear(old: nn.Linear, ours: QuantLayer) -> nn.Module:
    options = _weight_options(ours.quantizer)
    return _with_weights(layers.QuantLinear(old.in_features, old.out_features, old.bias is not None, **options), old)


def _weight_options(quantizer: Quantizer) -> dict[str, Any]:
    """Its default scale, the largest magnitude, for the tensor or for each channel."""
    if not isinstance(quantizer, LSQ):
        return {"weight_quant": None}
    scheme = schemes.Int8WeightPerChannelFloat if quantizer.channels else schemes.Int8WeightPerTensorFloat
    return {"weight_quant": scheme, "weight_bit_width": quantizer.bits}


def _tap(quantizer: Quantizer) -> nn.Module:
    """A learned scale that starts at our step: what its default scheme is once it has collected statistics."""
    if not isinstance(quantizer, LSQ):
        return nn.Identity()
    low, high = (code * quantizer.step().item() for code in quantizer.codes)
    if quantizer.signed:
        scheme, ends = schemes.Int8ActPerTensorFloatMinMaxInit, {"min_val": low, "max_val": high}
    else:
        scheme, ends = schemes.Uint8ActPerTensorFloatMaxInit, {"max_val": high}
    return layers.QuantIdentity(act_quant=scheme, bit_width=quantizer.bits, **ends)


@torch.no_grad()
def _with_weights(new: nn.Module, old: nn.Module) -> nn.Module:
    for name, parameter in old.named_parameters():
        new.get_parameter(name).copy_(parameter)
    return new.to(next(old.parameters()))


BREVITAS_PARTS = Replacements(_conv, _linear, _tap)
