"""``repq.explain``: what every layer of a network becomes, before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from repq_cli.deploy.freeze import converted
from repq_cli.deploy.tracing import Conversion
from repq_cli.library.foreign import own
from repq_cli.library.given import require_fit, typed
from repq_cli.library.quantize import mode_options, quant_options, unblocked_layers
from repq_cli.modes.catalogue import AUTO
from repq_cli.modes.compose import compose
from repq_cli.quant.float_leaf import is_kept
from repq_cli.quant.layers import QuantLayer
from repq_cli.quant.quantizer import Quantizer
from repq_cli.quant.wiring import input_quantizers
from repq_cli.reparam.block import Block
from repq_cli.reparam.transposed import Transposed
from repq_cli.text import columns


class Layer(NamedTuple):
    """What becomes of one operation.

    block        the kind of the block that it was, ``linear``, or the class of a layer without weights
    branches     how many branches train
    weight_bits, act_bits   of its weight and of what it reads; 32: floating point, None: it has no weight
    becomes      its operation in the deployed network; None where it has none
    refusal      why it has none, as a sentence
    """

    name: str
    block: str
    branches: int
    weight_bits: int | None
    act_bits: int | None
    becomes: str | None
    refusal: str | None


@dataclass(frozen=True)
class Explanation:
    """``layers`` in the order of execution; printed, a table."""

    mode: str
    layers: tuple[Layer, ...]

    @property
    def refusals(self) -> list[str]:
        """Why the network cannot be shipped, a sentence each; empty where it can."""
        return [layer.refusal for layer in self.layers if layer.refusal is not None]

    def __str__(self) -> str:
        header = ("layer", "block", "branches", "weights", "input", "becomes")
        lines = [
            (
                layer.name,
                layer.block,
                str(layer.branches or ""),
                _bits(layer.weight_bits),
                _bits(layer.act_bits),
                layer.becomes or "refused",
            )
            for layer in self.layers
        ]
        return "\n".join([f"mode {self.mode}", columns([header, *lines], len(header)), *self.refusals])


@typed
@torch.no_grad()
def explain(
    net: nn.Module, example: Tensor, weight_bits: int = 8, act_bits: int = 8, keep_float: Sequence[str] = ()
) -> Explanation:
    """What ``prepare`` and ``freeze`` would make of every layer, for inputs like ``example``; ``net`` stays as it is.

    keep_float  as ``prepare``'s

    Raises ConfigError for a network without layers, or one whose forward pass cannot be followed.
    """
    require_fit(net, example)
    net, kept = own(net, example, keep_float)
    quant = quant_options(None, weight_bits, act_bits)
    mode = mode_options(net, AUTO, quant)
    composed = compose(mode.rule.shaped_net(net, [example], mode), mode, quant, kept).eval()
    left = [name for name in unblocked_layers(net) if not is_kept(name, kept)]
    reads = input_quantizers(composed)
    found = converted(composed, example.shape[1:])
    steps = [node for node in found.graph.nodes if _computes(node, composed)]
    return Explanation(mode.name, tuple(_layer(node, net, found, left, reads) for node in steps))


def _computes(node: fx.Node, net: nn.Module) -> bool:
    """Whether a node does more than pass tensors on or quantize them."""
    if node.op != "call_module":
        return node.op in ("call_function", "call_method")
    return not isinstance(net.get_submodule(str(node.target)), Quantizer | nn.Identity)


def _layer(node: fx.Node, net: nn.Module, found: Conversion, left: list[str], reads: dict[str, str]) -> Layer:
    becomes = " + ".join(found.became[node]) or None
    refusal = found.refused[node].reason if node in found.refused else None
    if node.op != "call_module":
        return Layer(node.name, "", 0, None, None, becomes, refusal)
    name = str(node.target)
    module, before = found.net.get_submodule(name), net.get_submodule(name)
    if name in left:
        refusal = f"{name} is a {type(before).__name__} outside a block: make a block of it, or name it in keep_float."
        return Layer(name, type(before).__name__, 0, 32, 32, None, refusal)
    if not isinstance(module, QuantLayer):
        return Layer(name, type(module).__name__, 0, None, None, becomes, refusal)
    quantizer = found.net.get_submodule(reads[name]) if name in reads else None
    act_bits = quantizer.bits if isinstance(quantizer, Quantizer) else 32
    branches = len(before.branches) if isinstance(before, Block) else 1
    kind = before.kind if isinstance(before, Block | Transposed) else "linear"
    return Layer(name, kind, branches, module.quantizer.bits, act_bits, becomes, refusal)


def _bits(bits: int | None) -> str:
    return "" if bits is None else "float" if bits == 32 else f"{bits} bit"
