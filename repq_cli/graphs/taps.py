"""Where a network's tensors become codes, by rule.

A tensor that a layer with weights reads gets one quantizer, directly in front of its layers, and every other reader of
it reads the same codes. All other operations read what they are given, codes or the sums of the layers before, and the
next quantizer rounds once; so a concatenation needs no common step, and a function such as SiLU no codes in front.

What comes out of ReLU, ReLU6, sigmoid, hard sigmoid and softmax is unsigned, and so are pools, shuffles, resized maps,
concatenations, sums and products of unsigned tensors alone. Everything else is signed: SiLU, hard-swish and GELU, too,
which go down to -0.28, -0.38 and -0.17.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from repq_cli.graphs.adopted import Applied
from repq_cli.graphs.program import Operation
from repq_cli.models.tap import Tap
from repq_cli.reparam.block import Block
from repq_cli.reparam.transposed import LAYERS, Transposed

UNSIGNED = (nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Hardsigmoid, nn.Softmax, nn.Softplus)
KEEPING_SIGN = (
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.Upsample,
    nn.ZeroPad2d,
    nn.ReflectionPad2d,
    nn.ReplicationPad2d,
    nn.Flatten,
    nn.Unflatten,
    nn.Dropout,
    nn.ChannelShuffle,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
)
METHODS_KEEPING_SIGN = {"reshape", "view", "permute", "transpose", "amax"}
FUNCTIONS_KEEPING_SIGN = (operator.add, operator.mul, operator.getitem, torch.cat, torch.chunk, torch.split)


def tapped(operations: Mapping[str, Operation], readers: Mapping[str, Sequence[str]]) -> dict[str, Tap]:
    """The taps of the tensors that layers read, by the names of the operations that give them."""
    return {
        name: Tap(signed=not is_unsigned(name, operations))
        for name, read_by in readers.items()
        if any(reader and isinstance(operations[reader].target, LAYERS) for reader in read_by)
    }


def is_unsigned(name: str, operations: Mapping[str, Operation]) -> bool:
    """Whether an operation gives no value below zero, whatever the network reads."""
    operation = operations.get(name)
    if operation is None:  # the input
        return False
    target = operation.target
    if isinstance(target, Block | Transposed):
        return isinstance(target.activation, UNSIGNED)
    if isinstance(target, UNSIGNED):
        return True
    moves = isinstance(target, Applied) and target.word in METHODS_KEEPING_SIGN
    if moves or isinstance(target, KEEPING_SIGN) or target in FUNCTIONS_KEEPING_SIGN:
        return all(is_unsigned(source, operations) for source in operation.inputs)
    return False
