"""A composed network in words: one line per layer."""

from __future__ import annotations

from torch import nn

from repq_cli.modes.kernels import BranchKernel
from repq_cli.quant.layers import QuantConv, QuantLayer
from repq_cli.quant.quantizer import Quantizer

Line = tuple[str, ...]
HEADER: Line = ("layer", "trained as", "kernel", "stride", "weights", "in training", "deployed")


def describe_layers(net: nn.Module) -> list[Line]:
    """Name, branches, kernel shape, stride, weight bits and parameters (training, deployed) of every layer."""
    return [_line(name, layer) for name, layer in net.named_modules() if isinstance(layer, QuantLayer)]


def _line(name: str, layer: QuantLayer) -> Line:
    weight, multiplier, bias = layer.inference_weight()
    trained = sum(parameter.numel() for parameter in layer.parameters()) - _steps(layer.quantizer)
    deployed = sum(tensor.numel() for tensor in (weight, multiplier, bias) if tensor is not None)
    stride = str(layer.stride) if isinstance(layer, QuantConv) else ""
    shape = "x".join(map(str, weight.shape))
    return (name, _structure(layer), shape, stride, bits(layer.quantizer), f"{trained:,}", f"{deployed:,}")


def _structure(layer: QuantLayer) -> str:
    if not isinstance(layer, QuantConv):
        return "linear"
    if isinstance(layer.kernel, BranchKernel):
        return " + ".join(layer.kernel.block.branches)
    return "conv" if layer.norm is None else "conv, batch norm"


def describe_activations(net: nn.Module) -> list[Line]:
    """Name and bits of every activation tensor that is quantized on its own."""
    in_layers = {layer.quantizer for layer in net.modules() if isinstance(layer, QuantLayer)}
    return [
        (name, bits(module))
        for name, module in net.named_modules()
        if isinstance(module, Quantizer) and module not in in_layers
    ]


def bits(quantizer: Quantizer) -> str:
    """``float``, or bits and sign."""
    if quantizer.bits == 32:
        return "float"
    return f"{quantizer.bits} bit {'signed' if quantizer.signed else 'unsigned'}"


def _steps(quantizer: Quantizer) -> int:
    return sum(parameter.numel() for parameter in quantizer.parameters())
