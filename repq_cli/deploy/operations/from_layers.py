"""What becomes of quantized layers: their integers, by the layers' own ``freeze``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from repq_cli.deploy.operations.base import Node
from repq_cli.deploy.operations.quantize import codes_of
from repq_cli.deploy.packing import pack
from repq_cli.deploy.tracing import Call, Ref, RefusedError, form
from repq_cli.quant.layers import QuantConv, QuantLayer, QuantLinear
from repq_cli.quant.split import SplitLSQ

ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.Identity: "none",
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.Hardtanh: "hardtanh",
    nn.PReLU: "prelu",
}


@form(QuantLinear)
def _linear(call: Call, module: QuantLinear, x: Ref) -> Ref:
    return call.emit("linear", [x], **_layer(call, module))


@form(QuantConv)
def _conv(call: Call, module: QuantConv, x: Ref, raw: Ref | None = None) -> Ref:
    node = _layer(call, module)
    node |= {"stride": plain(module.stride), "padding": plain(module.padding), "groups": module.groups}
    node |= {"pad_value": int(module.pad_value), "input_scale": module.input_scale}
    if type(module.activation) not in ACTIVATIONS:
        raise RefusedError(
            f"The {type(module.activation).__name__} of layer {call.path} has no deployed form; these have: "
            f"{', '.join(kind.__name__ for kind in ACTIVATIONS)}."
        )
    node["activation"] = ACTIVATIONS[type(module.activation)]
    if isinstance(module.activation, nn.PReLU):
        node["slope"] = call.store("slope", module.activation.weight)
    if plain(module.dilation) != 1:
        node["dilation"] = plain(module.dilation)
    inputs = [x] if raw is None or not module.input_scale else [x, raw]
    if module.output_padding is None:
        return call.emit("conv", inputs, **node)
    return call.emit("conv_transpose", inputs, **node, output_padding=plain(module.output_padding))


def plain(sizes: int | Sequence[int]) -> int | list[int]:
    """Sizes as files have them: one number where it says all."""
    if isinstance(sizes, int):
        return sizes
    return sizes[0] if len(set(sizes)) == 1 else list(sizes)


def _layer(call: Call, module: QuantLayer) -> Node:
    """What convolutions and classifiers say alike."""
    frozen, quantizer = module.freeze(), module.quantizer
    node: Node = {"bits": quantizer.bits, "shape": list(frozen.weight.shape)}
    if frozen.grid is None:
        node["weight"] = call.store("weight", frozen.weight)
    else:
        node |= codes_of(quantizer)
        codes = frozen.weight.cpu()
        if isinstance(quantizer, SplitLSQ):
            node["identity"] = call.store("identity_codes", codes[quantizer.split.cpu()].to(torch.int8))
            codes = codes.masked_fill(quantizer.split.cpu(), 0)
        node["weight"] = call.store("codes", pack(codes, quantizer.bits, node["low"]))
        node["weight_step"] = call.store("weight_step", frozen.grid.step)
        node["weight_zero_point"] = call.store("weight_zero_point", frozen.grid.zero_point)
    bias = frozen.bias
    node["bias"] = call.store("bias", bias if bias is None or frozen.bias_step is None else bias.to(torch.int32))
    node["bias_step"] = call.store("bias_step", frozen.bias_step)
    node["multiplier"] = call.store("multiplier", frozen.multiplier)
    return node
