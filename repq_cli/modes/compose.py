"""From a trained network of blocks to its quantization-aware form: by the rule of its mode."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Collection
from fnmatch import fnmatchcase
from functools import partial
from typing import NamedTuple

from torch import nn

from repq_cli.errors import ConfigError
from repq_cli.models.tap import Shortcut, Tap
from repq_cli.modes.catalogue.merged import PTQ
from repq_cli.modes.kernels import BranchKernel
from repq_cli.modes.mode import Site
from repq_cli.modes.options import ModeOptions
from repq_cli.modes.transposed import compose_transposed
from repq_cli.quant.binary import SignActivation
from repq_cli.quant.build import activation_quantizer, weight_quantizer
from repq_cli.quant.float_leaf import FloatLeaf, is_kept
from repq_cli.quant.layers import QuantConv, QuantLayer, QuantLinear
from repq_cli.quant.options import Bits, QuantOptions
from repq_cli.quant.pixels import PixelQuantizer
from repq_cli.quant.post_norm import PostNorm1d, PostNorm2d
from repq_cli.quant.quantizer import NoQuantizer, Quantizer
from repq_cli.quant.wiring import inputs, link
from repq_cli.reparam.block import Block
from repq_cli.reparam.layout import alike
from repq_cli.reparam.transposed import LAYERS, Transposed
from repq_cli.typecheck import nearest

FLOAT = QuantOptions(weight_bits=32, act_bits=32)


class Composition(NamedTuple):
    """What a quantization-aware network was composed by."""

    mode: ModeOptions
    quant: QuantOptions


def composition_of(net: nn.Module) -> Composition:
    """What ``compose`` made ``net`` by. Raises ConfigError for any other network."""
    found = getattr(net, "composition", None)
    if not isinstance(found, Composition):
        raise ConfigError("This network is not quantization-aware: give the one that prepare (or compose) has made.")
    return found


def compose(net: nn.Module, mode: ModeOptions, quant: QuantOptions, keep_float: Collection[str] = ()) -> nn.Module:
    """A quantization-aware copy of ``net``; steps still want ``calibrate``.

    Every block becomes one convolution whose kernel comes from where the mode says, every tap its tensor's quantizer,
    every linear layer a quantized one; ``quant.layers`` have bits of their own. The function is that of ``net`` in eval
    mode, up to quantization.
    ``keep_float``: names of modules whose layers stay in floating point, and with them the tensors that only they read;
    a foreign network may have some itself, as ``kept``.
    """
    keep_float = (*keep_float, *getattr(net, "kept", ()))
    refuse_signs_behind_relu(net, quant)
    net = copy.deepcopy(net)
    net.composition = Composition(mode, quant)  # type: ignore[assignment]
    edges = net.edges()  # type: ignore[operator]
    like = next(net.parameters())
    bits = {name: width for name, width in layer_bits(net, quant).items() if not is_kept(name, keep_float)}
    taps = {name: module for name, module in net.named_modules() if isinstance(module, Tap)}
    leaves = [name for name, module in net.named_modules() if isinstance(module, FloatLeaf)]
    for name, module in list(net.named_modules()):
        if is_kept(name, leaves):
            continue
        edge = name in edges
        options = FLOAT if is_kept(name, keep_float) else quant.alone(bits[name]) if name in bits else quant
        if isinstance(module, Block):
            net.set_submodule(name, compose_block(module, mode, options, edge))
        elif isinstance(module, Transposed):
            post_bn = mode.has_post_bn(options.bits("weight", edge))
            net.set_submodule(name, compose_transposed(module, options, edge, post_bn))
        elif isinstance(module, Tap):
            net.set_submodule(name, _tap_quantizer(module, options, edge).to(like))
        elif isinstance(module, Shortcut):
            module.reads_raw = quant.residual == "fp"
        elif isinstance(module, nn.Linear):
            net.set_submodule(name, _compose_linear(module, options, edge))
    for name, readers in _readers(net).items() if bits or keep_float else ():
        quantized = [reader for reader in readers if not is_kept(reader, keep_float)]
        if not quantized:
            net.set_submodule(name, NoQuantizer())
        elif not bits.keys().isdisjoint(quantized):
            options = quant.alone(_widest(name in edges, quantized, bits, quant))
            net.set_submodule(name, _tap_quantizer(taps[name], options, edge=False).to(like))
    link(net)
    return net


def layer_bits(net: nn.Module, quant: QuantOptions) -> dict[str, Bits]:
    """The bits of each layer of a network of blocks that ``quant.layers`` names.

    Raises ConfigError, with the layers that there are, for a name or pattern that fits none.
    """
    layers = [name for name, module in net.named_modules() if isinstance(module, LAYERS)]
    layers = [name for name in layers if not any(name.startswith(f"{other}.") for other in layers)]  # inside a block
    found: dict[str, Bits] = {}
    for pattern, bits in (quant.layers or {}).items():
        fitting = [name for name in layers if fnmatchcase(name, pattern)]
        if not fitting:
            near = nearest(pattern, layers)
            hint = f"did you mean '{near}'?" if near else f"its layers: {', '.join(layers)}"
            raise ConfigError(f"quant.layers={{{pattern}: {bits}}} fits no layer of this network; {hint}".rstrip("."))
        found |= dict.fromkeys(fitting, bits)
    return found


def _readers(net: nn.Module) -> dict[str, list[str]]:
    """The layers that read each activation tensor, by the name of its quantizer."""
    found = defaultdict[str, list[str]](list)
    for layer, quantizer in inputs(net).items():
        found[quantizer].append(layer)
    return found


def _widest(edge: bool, readers: list[str], bits: dict[str, Bits], quant: QuantOptions) -> Bits:
    """The bits of a tensor: those of the widest of its readers, float ones aside.

    Raises ConfigError where some of them read signs and others wider codes.
    """
    asked = {name: bits.get(name, quant.bits("act", edge)) for name in readers}
    if quant.signs_of_activations and min(asked.values()) == 1 < max(asked.values()):
        raise ConfigError(
            f"quant.layers: the layers {', '.join(readers)} read one tensor, which cannot be signs for some and codes "
            f"for others: name all of them."
        )
    return max((width for width in asked.values() if width < 32), default=32)


def merge_blocks(net: nn.Module) -> nn.Module:
    """A copy of ``net``, in eval mode, with every block merged into one convolution and nothing quantized."""
    return compose(net, ModeOptions(PTQ.name), FLOAT).eval()


def refuse_signs_behind_relu(net: nn.Module, quant: QuantOptions) -> None:
    """ConfigError, with the tensor's name, where signs would be taken of values none of which is below zero."""
    edges = net.edges()  # type: ignore[operator]
    for name, tap in net.named_modules():
        if (
            isinstance(tap, Tap)
            and not tap.signed
            and not tap.output
            and isinstance(_tap_quantizer(tap, quant, name in edges), SignActivation)
        ):
            raise ConfigError(
                f"quant.act_method=sign: the activation tensor {name} has no value below zero, as behind a ReLU: their "
                f"signs are all +1. Signs want the order convolution, batch norm, sign: build the network with "
                f"hard tanh, or use quant.act_method=lsq."
            )


def _tap_quantizer(tap: Tap, quant: QuantOptions, edge: bool) -> Quantizer:
    if tap.output and (quant.output == "float" or quant.act_bits == 32):
        return NoQuantizer()
    if tap.summand:
        return activation_quantizer(quant.alone(8), tap.signed, edge) if quant.adds_codes else NoQuantizer()
    if tap.output or (tap.pixels and quant.bits("act", edge) == 8):
        return PixelQuantizer()
    # What is averaged feeds no convolution: at one bit it would lose most and save nothing.
    averaged = tap.pooled and quant.act_bits == 1
    return activation_quantizer(quant, tap.signed, edge or averaged)


def compose_block(block: Block, mode: ModeOptions, quant: QuantOptions, edge: bool) -> QuantConv:
    """One block as a quantized convolution."""
    geometry = block.geometry
    make_quantizer = partial(weight_quantizer, quant, edge=edge, depthwise=geometry.depthwise)
    merged = mode.rule.quantizes_merged
    quantizer = make_quantizer(geometry.weight_shape, split=block.split_taps()) if merged else NoQuantizer()
    post_bn = quantizer.scale_free or mode.has_post_bn(quantizer.bits)
    kernel, norm = mode.rule.kernel(Site(block, mode, post_bn, make_quantizer))
    if post_bn and norm is None:
        norm = PostNorm2d(geometry.out_channels)
    reads_signs = quant.method("act", quant.bits("act", edge)) == "sign"
    return QuantConv(
        kernel,
        quantizer,
        block.activation,
        norm,
        stride=alike(geometry.strides),
        padding=alike(geometry.paddings),
        groups=geometry.groups,
        dilation=alike(geometry.dilations),
        pad_value=quant.pad_value if reads_signs else 0,
        input_scale=quant.input_scale and reads_signs,
        int32_bias=quant.int32_bias,
    ).to(next(block.parameters()))


def _compose_linear(linear: nn.Linear, quant: QuantOptions, edge: bool) -> QuantLinear:
    """A classifier; one without a scale gets a batch norm, as BNN's last layer has (arXiv 1602.02830)."""
    quantizer = weight_quantizer(quant, linear.weight.shape, edge)
    norm = PostNorm1d(linear.out_features) if quantizer.scale_free else None
    return QuantLinear(linear, quantizer, norm, int32_bias=quant.int32_bias).to(linear.weight)


def freeze_statistics(net: nn.Module) -> None:
    """Stop all batch-norm statistics of a quantization-aware net where they are."""
    for module in net.modules():
        if isinstance(module, BranchKernel | QuantLayer):
            module.freeze_statistics()
