"""What becomes of quantized layers: their integers, by the layers' own ``freeze``."""

from __future__ import annotations

import torch
from torch import nn

from repq_cli.deploy.operations.base import Node
from repq_cli.deploy.operations.quantize import codes_of
from repq_cli.deploy.packing import pack
from repq_cli.deploy.tracing import Call, Ref, RefusedError, form, plain
from repq_cli.quant.layers import QuantConv, QuantLayer, QuantLinear
from repq_cli.quant.split import SplitLSQ
from repq_cli.quant.windows import turned

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
    activation, behind = module.activation, call.form(module.activation)
    is_fused = type(activation) in ACTIVATIONS and not (
        isinstance(activation, nn.Hardtanh) and _has_own_ends(activation)
    )
    node["activation"] = ACTIVATIONS[type(activation)] if is_fused else "none"
    if isinstance(activation, nn.PReLU):
        node["slope"] = call.store("slope", activation.weight)
    if plain(module.dilation) != 1:
        node["dilation"] = plain(module.dilation)
    inputs = [x] if raw is None or not module.input_scale else [x, raw]
    if module.output_padding is None:
        sums = call.emit("conv", inputs, **node)
    else:
        sums = call.emit("conv_transpose", inputs, **node, output_padding=plain(module.output_padding))
    return sums if is_fused else behind(call, activation, sums)


def _has_own_ends(activation: nn.Module) -> bool:
    return type(activation) is nn.Hardtanh and (activation.min_val, activation.max_val) != (-1, 1)


@form(nn.Conv2d, nn.ConvTranspose2d)
def _float_conv(call: Call, module: nn.Conv2d | nn.ConvTranspose2d, x: Ref) -> Ref:
    """A layer that stays in floating point."""
    if module.padding_mode != "zeros":
        raise RefusedError(
            f"The layer {call.where} pads by {module.padding_mode}: put a padding module in front of it."
        )
    is_transposed = isinstance(module, nn.ConvTranspose2d)
    weight = turned(module.weight, module.groups) if is_transposed else module.weight
    node: Node = {"bits": 32, "shape": list(weight.shape), "weight": call.store("weight", weight)}
    node |= {"bias": call.store("bias", module.bias), "bias_step": None, "multiplier": None}
    node |= {"stride": plain(module.stride), "padding": plain(_padding(module)), "groups": module.groups}
    node |= {"pad_value": 0, "input_scale": False, "activation": "none"}
    if plain(module.dilation) != 1:
        node["dilation"] = plain(module.dilation)
    if is_transposed:
        return call.emit("conv_transpose", [x], **node, output_padding=plain(module.output_padding))
    return call.emit("conv", [x], **node)


def _padding(module: nn.Conv2d | nn.ConvTranspose2d) -> tuple[int, ...]:
    """Also of ``padding="same"``, which gives an odd row or column to the end."""
    if not isinstance(module.padding, str):
        return tuple(module.padding)
    spans = zip(module.kernel_size, module.dilation, strict=True)
    rows, columns = (dilation * (size - 1) if module.padding == "same" else 0 for size, dilation in spans)
    ends = (rows // 2, columns // 2, rows - rows // 2, columns - columns // 2)
    return ends if rows % 2 or columns % 2 else ends[:2]


@form(nn.Linear)
def _float_linear(call: Call, module: nn.Linear, x: Ref) -> Ref:
    """A layer that stays in floating point."""
    node: Node = {"bits": 32, "shape": list(module.weight.shape), "weight": call.store("weight", module.weight)}
    node |= {"bias": call.store("bias", module.bias), "bias_step": None, "multiplier": None}
    return call.emit("linear", [x], **node)


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
