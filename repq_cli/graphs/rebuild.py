"""Changes of a foreign network before it trains: its strides for small images, and blocks in place of its regions."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch
from torch import nn

from repq_cli.graphs.adopt import adopt
from repq_cli.graphs.adopted import Adopted
from repq_cli.graphs.operations import operations_of
from repq_cli.graphs.trace import trace
from repq_cli.reparam.block import Block, MakeBlock
from repq_cli.reparam.branch import ConvBranch
from repq_cli.reparam.layout import Geometry, Layout

LARGE = 256  # pixels of an image whose halvings can be counted
HALVING = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)


def of_blocks(
    net: nn.Module,
    shape: tuple[int, int, int],
    halvings: int = 0,
    blocks: tuple[MakeBlock, Collection[int]] | None = None,
    keep_float: Sequence[str] = (),
) -> Adopted:
    """A foreign network for images of a shape in blocks, some halvings left out.

    blocks: what makes blocks, and of which kernel sizes; None leaves the network's own regions. Others become one
    convolution of what they merge into, with batch norm behind it if they have any, freshly initialised.
    keep_float: names and patterns of its modules that stay in floating point, in QAT and in what ships.
    """
    drop_strides(net, shape[0], halvings)
    like = next(net.parameters())
    found = adopt(net, torch.zeros(1, *shape, device=like.device, dtype=like.dtype), keep_float)
    if blocks is not None:
        _replace_regions(found, *blocks)
    return found


def drop_strides(net: nn.Module, channels: int, halvings: int) -> None:
    """Set the strides of convolutions and pools to 1 that halve the map for the first, second, … time.

    All of one halving, such as a block's branches and its shortcut, are changed together.
    """
    if not halvings:
        return
    like = next(net.parameters())
    example = torch.zeros(1, channels, LARGE, LARGE, device=like.device, dtype=like.dtype)
    program = operations_of(trace(net, example))
    shapes = {name: operation.shape for name, operation in program.operations.items()} | {program.input: example.shape}
    for operation in program.operations.values():
        module = net.get_submodule(operation.path) if isinstance(operation.module, HALVING) else None
        if not isinstance(module, HALVING) or module.stride not in (2, (2, 2), [2, 2]):
            continue
        seen = round(math.log2(LARGE / shapes[operation.inputs[0]][2]))
        if seen < halvings:
            if not isinstance(module, nn.Conv2d) and module.padding in (0, (0, 0)):
                module.kernel_size = 1
            module.stride = (1, 1) if isinstance(module, nn.Conv2d) else 1


def _replace_regions(net: Adopted, make_block: MakeBlock, sizes: Collection[int]) -> None:
    for name, block in list(net.named_modules()):
        if not isinstance(block, Block):
            continue
        geometry = _square(block.geometry)
        if geometry is not None and geometry.kernel_size in sizes and block.has_batch_norm:
            new = make_block(geometry, block.activation)
        elif _is_plain(block):
            continue
        else:
            new = _plain(block)
        net.set_submodule(name, new.to(next(block.parameters())).train(block.training))
        net.foreign_names = {}  # a file of that network's weights has none for these


def _is_plain(block: Block) -> bool:
    return len(block.branches) == 1 and isinstance(next(iter(block.branches.values())), ConvBranch)


def _plain(block: Block) -> Block:
    norm = block.has_batch_norm
    branch = ConvBranch(block.geometry, batch_norm=norm, bias=not norm)
    return Block(block.geometry, {"conv": branch}, block.activation, "conv")


def _square(layout: Layout) -> Geometry | None:
    """The same layout as blocks of repq's own have it, if they can."""
    (size, columns), (stride, across), (padding, sides) = layout.sizes, layout.strides, layout.paddings
    alike = size == columns and stride == across and padding == sides and layout.dilations == (1, 1) and size % 2
    if not alike:
        return None
    return Geometry(layout.in_channels, layout.out_channels, size, stride, padding, layout.groups)
