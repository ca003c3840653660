"""The same network quantized by others' means, so that a step of theirs is timed beside ours.

``lsq`` is the textbook recipe of LSQ in plain operations that autograd differentiates, written from the formula
(arXiv 1902.08153): what the popular lsq-net does, though none of its code is here. ``brevitas``: the layers of the
package of that name, where it is installed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from repq_cli.models.tap import Tap
from repq_cli.quant.layers import QuantLayer
from repq_cli.quant.lsq import LSQ
from repq_cli.quant.quantizer import Quantizer
from repq_cli.reparam.block import Block
from repq_cli.reparam.branch import ConvBranch


class Replacements(NamedTuple):
    """What stands in for a network's parts, given the part and what our Plain QAT net has in its place."""

    conv: Callable[[Block, QuantLayer], nn.Module]
    linear: Callable[[nn.Linear, QuantLayer], nn.Module]
    tap: Callable[[Quantizer], nn.Module]


def rebuilt(plain: nn.Module, ours: nn.Module, replacements: Replacements) -> nn.Module:
    """A copy of ``plain`` (FP) with other blocks, classifiers and taps; ``ours``: its Plain QAT net, with steps."""
    net = copy.deepcopy(plain)
    found: dict[str, Any] = dict(ours.named_modules())
    for name, module in list(net.named_modules()):
        if isinstance(module, Block):
            net.set_submodule(name, replacements.conv(module, found[name]))
        elif isinstance(module, nn.Linear):
            net.set_submodule(name, replacements.linear(module, found[name]))
        elif isinstance(module, Tap):
            net.set_submodule(name, replacements.tap(found[name]))
    return net


def conv_and_norm(block: Block) -> tuple[nn.Conv2d, nn.BatchNorm2d | None]:
    """The convolution of a block without branches, and the batch norm behind it."""
    (branch,) = block.branches.values()
    assert isinstance(branch, ConvBranch), "a plain block has one convolution"
    return branch.conv, branch.norm


class TextbookLSQ(nn.Module):
    """``s' = sg(s - s g) + s g``, ``z = clip(v / s')``, ``z' = z + sg(round(z) - z)``, ``v' = z' s'``.

    sg stops gradients, ``g = 1 / sqrt(N high)``. The gradients are LSQ's, eqs. 3 and 5, by autograd. Widths and the
    first step are those of ``like``.
    """

    def __init__(self, like: LSQ) -> None:
        super().__init__()
        self.codes, self.channels, self.per_sample = like.codes, like.channels, like.per_sample
        self.step_size = nn.Parameter(like.step().detach().clone())

    def forward(self, values: Tensor) -> Tensor:
        count = values[0].numel() if self.per_sample else values.numel() // (self.channels or 1)
        factor = (count * self.codes.high) ** -0.5
        step = self.step_size.view(-1, *[1] * (values.dim() - 1)) if self.channels else self.step_size
        step = (step - step * factor).detach() + step * factor
        codes = F.hardtanh(values / step, *self.codes)  # clamp's gradient at both ends is not that of every torch
        codes = codes + (codes.round() - codes).detach()
        return codes * step


class _Conv(nn.Module):
    """``activation(norm(conv(x, Q(weight))))``, called as a block is."""

    def __init__(self, block: Block, quantizer: nn.Module) -> None:
        super().__init__()
        conv, self.norm = conv_and_norm(block)
        self.weight, self.bias, self.geometry = conv.weight, conv.bias, block.geometry
        self.quantizer, self.activation = quantizer, block.activation

    def forward(self, x: Tensor, raw: Tensor | None = None) -> Tensor:
        weight, geometry = self.quantizer(self.weight), self.geometry
        y = F.conv2d(x, weight, self.bias, geometry.strides, geometry.paddings, geometry.dilations, geometry.groups)
        return self.activation(y if self.norm is None else self.norm(y))


class _Linear(nn.Module):
    """``x Q(weight)^T + bias``."""

    def __init__(self, linear: nn.Linear, quantizer: nn.Module) -> None:
        super().__init__()
        self.weight, self.bias, self.quantizer = linear.weight, linear.bias, quantizer

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.quantizer(self.weight), self.bias)


def _textbook(quantizer: Quantizer) -> nn.Module:
    return TextbookLSQ(quantizer) if isinstance(quantizer, LSQ) else nn.Identity()


LSQ_PARTS = Replacements(
    conv=lambda block, ours: _Conv(block, _textbook(ours.quantizer)),
    linear=lambda linear, ours: _Linear(linear, _textbook(ours.quantizer)),
    tap=_textbook,
)
