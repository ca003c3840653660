"""Kernels of branches that are quantized one by one, the bits that merging them needs, and quantizing that again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Size, Tensor, nn
from torch.nn.utils import parametrize

from repq_cli.modes.kernels import BranchKernel, FixedKernel
from repq_cli.modes.options import ModeOptions
from repq_cli.quant.bits import levels, table_bits, uniform_bits
from repq_cli.quant.init import Initialiser
from repq_cli.quant.layers import QuantConv
from repq_cli.quant.quantizer import Quantizer
from repq_cli.reparam.block import Block


class BranchwiseKernel(BranchKernel):
    """The merged kernel of branches whose own kernels are each fake-quantized; batch norms stay float.

    Every convolution inside the block reads its weight through a quantizer of its own, with its own steps. What is
    merged from them lies on no ``b``-bit grid: products and sums of integers need more bits, and steps of different
    branches have no common multiple. Source: arXiv 2311.05317, section 3.1 (the option it rejects).
    """

    def __init__(self, block: Block, options: ModeOptions, make_quantizer: Callable[[Size], Quantizer]) -> None:
        super().__init__(block, "batch" if block.has_batch_norm else "running", options)
        self.make_quantizer = make_quantizer
        self.quantizers: list[Quantizer] = []  # a plain list: they are modules of their convolutions
        for conv in [module for module in block.modules() if isinstance(module, nn.Conv2d)]:
            quantizer = make_quantizer(conv.weight.shape).to(conv.weight)
            parametrize.register_parametrization(conv, "weight", quantizer)
            self.quantizers.append(quantizer)

    def calibrate(self, initialiser: Initialiser) -> None:
        """Initialise each kernel's steps on that kernel, as it reaches its quantizer."""

        def set_steps(quantizer: Quantizer, inputs: tuple[Tensor]) -> None:
            quantizer.calibrate(inputs[0].detach(), initialiser)

        hooks = [quantizer.register_forward_pre_hook(set_steps) for quantizer in self.quantizers]
        self.inference()
        for hook in hooks:
            hook.remove()


class MergedBits(NamedTuple):
    """What a kernel merged from quantized branches needs; see ``quant.bits``.

    levels: distinct values in one output channel, of those that are there: at most its number of weights.
    """

    levels: int
    table_bits: int
    uniform_bits: int | None


@torch.no_grad()
def merged_bits(net: nn.Module) -> dict[str, MergedBits]:
    """By block, the bits that its merged kernel needs; in float64, where the merge's own rounding makes no levels."""
    found = {}
    for name, layer in net.named_modules():
        kernel = layer.kernel if isinstance(layer, QuantConv) else None
        if isinstance(kernel, BranchwiseKernel) and kernel.block.kind != "conv":  # an ordinary one merges with nothing
            weight, _ = copy.deepcopy(kernel).cpu().double().inference()
            found[name] = MergedBits(levels(weight), table_bits(weight), uniform_bits(weight))
    return found


@torch.no_grad()
def requantize(net: nn.Module, initialiser: Initialiser) -> nn.Module:
    """A copy of ``net`` with every block merged and its one kernel quantized to the bits that were asked for."""
    net = copy.deepcopy(net)
    for layer in net.modules():
        if isinstance(layer, QuantConv) and isinstance(layer.kernel, BranchwiseKernel):
            conv = layer.kernel.block.to_conv()
            quantizer = layer.kernel.make_quantizer(conv.weight.shape)
            layer.kernel, layer.quantizer = FixedKernel(conv), quantizer.to(conv.weight)
            layer.calibrate(initialiser)
    return net.eval()
