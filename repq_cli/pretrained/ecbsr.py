"""ECBSR's published layouts, read in xindongzhang/ECBSR: its blocks, and its plain network, merged from them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repq_cli.models.ecbsr import ECBSR
from repq_cli.pretrained.layout import Layout, Pairs, Source, all_plain, blocks_of, linear, merged_conv
from repq_cli.reparam.block import Block
from repq_cli.reparam.ecb import MASKS

EDGES = {"sobel_x": "conv1x1_sbx", "sobel_y": "conv1x1_sby", "laplacian": "conv1x1_lpl"}


def official(net: nn.Module) -> Layout | None:
    """Blocks below ``backbone``; whether they add their input (``rep.identity``) has no key."""
    if not isinstance(net, ECBSR):
        return None
    plain = all_plain(net)
    if not plain and any(block.kind != "ecb" for block in blocks_of(net)):
        return None

    def pairs() -> Pairs:
        for index, block in enumerate(net.blocks):
            assert isinstance(block, Block)
            ours, theirs = f"blocks.{index}", f"backbone.{index}"
            yield from merged_conv(net, ours, f"{theirs}.conv3x3") if plain else _ecb(f"{ours}.branches", theirs)
            if isinstance(block.activation, nn.PReLU):
                yield f"{ours}.activation.weight", Source(f"{theirs}.act.weight")

    return Layout(dict(pairs()), {} if plain else dict(_masks(net)), merged=plain)


def _ecb(ours: str, theirs: str) -> Pairs:
    yield from linear(f"{ours}.dense.conv", f"{theirs}.conv3x3")
    for layer, number in (("point", 0), ("conv", 1)):
        yield f"{ours}.point_dense.{layer}.weight", Source(f"{theirs}.conv1x1_3x3.k{number}")
        yield f"{ours}.point_dense.{layer}.bias", Source(f"{theirs}.conv1x1_3x3.b{number}")
    for name, key in EDGES.items():
        yield f"{ours}.{name}.point.weight", Source(f"{theirs}.{key}.k0")
        yield f"{ours}.{name}.point.bias", Source(f"{theirs}.{key}.b0")
        yield f"{ours}.{name}.scale", Source(f"{theirs}.{key}.scale", torch.flatten, _as_kernel)
        yield f"{ours}.{name}.bias", Source(f"{theirs}.{key}.bias")


def _as_kernel(ours: torch.Size) -> torch.Size:
    return torch.Size([*ours, 1, 1, 1])


def _masks(net: ECBSR) -> dict[str, Tensor]:
    """The edge filters, which their files hold once for every output channel."""
    channels = [block.geometry.out_channels for block in blocks_of(net)]
    return {
        f"backbone.{index}.{key}.mask": torch.tensor(MASKS[name]).expand(count, 1, 3, 3)
        for index, count in enumerate(channels)
        for name, key in EDGES.items()
    }
