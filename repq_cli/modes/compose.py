"""From a trained network of blocks to its quantization-aware form: one rule per mode."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from repq_cli.models.tap import Shortcut, Tap
from repq_cli.modes.branchwise import BranchwiseKernel
from repq_cli.modes.kernels import BranchKernel, FixedKernel, Source
from repq_cli.modes.options import ModeOptions
from repq_cli.quant.build import activation_quantizer, weight_quantizer
from repq_cli.quant.init import Initialiser
from repq_cli.quant.layers import KernelSource, QuantConv, QuantLayer, QuantLinear, quantizers_in_layers
from repq_cli.quant.options import QuantOptions
from repq_cli.quant.quantizer import NoQuantizer, Quantizer, quantizers
from repq_cli.reparam.block import Block
from repq_cli.reparam.branch import ConvBranch

STATISTICS: dict[str, Source] = {"repq": "running", "repq_bn": "batch", "repq_bnest": "estimated"}


def compose(net: nn.Module, mode: ModeOptions, quant: QuantOptions) -> nn.Module:
    """A quantization-aware copy of ``net``; steps still want ``calibrate``.

    Every block becomes one convolution whose kernel comes from where the mode says, every tap its tensor's quantizer,
    every linear layer a quantized one. The function is that of ``net`` in eval mode, up to quantization.
    """
    net = copy.deepcopy(net)
    edges = net.edges()  # type: ignore[operator]
    for name, module in list(net.named_modules()):
        edge = name in edges
        if isinstance(module, Block):
            net.set_submodule(name, compose_block(module, mode, quant, edge))
        elif isinstance(module, Tap):
            net.set_submodule(name, activation_quantizer(quant, module.signed, edge))
        elif isinstance(module, Shortcut):
            module.reads_raw = quant.residual == "fp"
        elif isinstance(module, nn.Linear):
            net.set_submodule(name, QuantLinear(module, weight_quantizer(quant, module.out_features, edge)))
    return net


def compose_block(block: Block, mode: ModeOptions, quant: QuantOptions, edge: bool) -> QuantConv:
    """One block as a quantized convolution."""
    kernel: KernelSource
    geometry = block.geometry
    quantizer = weight_quantizer(quant, geometry.out_channels, edge)
    norm = None
    if mode.name in STATISTICS:
        kernel = BranchKernel(block, STATISTICS[mode.name], mode)
    elif mode.name == "plain" and mode.plain_bn == "folded":
        kernel = BranchKernel(block, "batch", mode)
    elif mode.name == "ptq" or (mode.name == "merged" and mode.merged_bn == "none"):
        kernel = FixedKernel(block.to_conv())
    elif mode.name == "branchwise":
        kernel, quantizer = BranchwiseKernel(block, mode, quant, edge), NoQuantizer()
    else:
        branch = _only_branch(block)
        kernel, norm = FixedKernel(branch.conv), branch.norm
    return QuantConv(
        kernel,
        quantizer,
        block.activation,
        norm,
        stride=geometry.stride,
        padding=geometry.padding,
        groups=geometry.groups,
    )


def _only_branch(block: Block) -> ConvBranch:
    (branch,) = block.branches.values()
    assert isinstance(branch, ConvBranch), "a plain block has one convolution"
    return branch


@torch.no_grad()
def calibrate(net: nn.Module, batch: Tensor, initialiser: Initialiser) -> None:
    """Set every step: weights on their merged kernels, then activations layer by layer on ``batch`` in one forward.

    Each activation quantizer sees its input as the already quantized layers before it give it, in eval mode.
    """
    was_training = net.training
    net.eval()
    in_layers = quantizers_in_layers(net)
    for layer in net.modules():
        if isinstance(layer, QuantLayer):
            layer.calibrate(initialiser)

    def set_steps(quantizer: Quantizer, inputs: tuple[Tensor]) -> None:
        quantizer.calibrate(inputs[0], initialiser)

    hooks = [
        quantizer.register_forward_pre_hook(set_steps)
        for quantizer in quantizers(net).values()
        if quantizer not in in_layers
    ]
    try:
        net(batch)
    finally:
        for hook in hooks:
            hook.remove()
    net.train(was_training)


def freeze_statistics(net: nn.Module) -> None:
    """Stop all batch-norm statistics of a quantization-aware net where they are."""
    for module in net.modules():
        if isinstance(module, BranchKernel | QuantConv):
            module.freeze_statistics()
