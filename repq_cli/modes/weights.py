"""The kernels behind a quantized layer, its branches' and the merged one, and how they lie on its grid."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from repq_cli.quant.layers import quant_layers
from repq_cli.quant.split import SplitLSQ
from repq_cli.reparam.block import Block
from repq_cli.reparam.branch import Branch, SumBranch, fold
from repq_cli.reparam.statistics import RunningStatistics

MOST_BINS = 80  # of a histogram


def blocks_behind(net: nn.Module) -> dict[str, Block]:
    """By layer, the blocks of a network of blocks, or those inside the quantized convolutions that rebuild them."""
    found = {name: module for name, module in net.named_modules() if isinstance(module, Block)}
    return {name.removesuffix(".kernel.block"): block for name, block in found.items()}


@torch.no_grad()
def branch_kernels(block: Block) -> dict[str, Tensor]:
    """Each branch's share of the merged kernel, ``[O, I/g, kh, kw]`` in its own size; centred, they add up to it.

    Batch norms are folded by their running statistics, also the one behind a sum of branches. Empty for a block with
    nothing to merge. Branches without a weight that is not zero are left out.
    """
    statistics, branches = RunningStatistics(), block.branches
    only = next(iter(branches.values()))
    if len(branches) > 1:
        kernels = {name: cast("Branch", branch).merged(statistics) for name, branch in branches.items()}
    elif isinstance(only, SumBranch):
        kernels = {name: cast("Branch", branch).merged(statistics) for name, branch in only.branches.items()}
        if only.norm is not None:
            kernels = {name: fold(only.norm, kernel, statistics, block.geometry) for name, kernel in kernels.items()}
    else:
        kernels = {}
    return {name: kernel.weight for name, kernel in kernels.items() if kernel.weight.count_nonzero()}


@torch.no_grad()
def weight_histograms(net: nn.Module, blocks: Mapping[str, Block]) -> list[dict[str, Any]]:
    """For each quantized layer how its weights lie, in units of their output channel's step, counted from zero.

    ``blocks``: of the layers that were merged from branches. ``edges``: of ``n`` bins, multiples of a power of two.
    ``branches``, ``merged``: counts in those; of a branch what is not zero, since its kernel may be smaller than the
    merged one, or a fixed filter with holes. ``codes``: counts of ``low..high``; those of a split identity, which lie
    beyond, are left out.
    """
    found = []
    for name, layer in quant_layers(net).items():
        if layer.quantizer.bits == 32:
            continue
        weight = layer.merged_weight()
        grid = layer.quantizer.grid(weight)
        step = grid.step.cpu()
        zero = torch.zeros(()) if grid.zero_point is None else grid.zero_point.cpu()
        codes = layer.quantizer.integers(weight).cpu() - zero
        if isinstance(layer.quantizer, SplitLSQ):
            codes = codes[~layer.quantizer.split.cpu()]
        low, high = (
            int(end) for end in (layer.quantizer.codes.low - zero.max(), layer.quantizer.codes.high - zero.min())
        )
        merged = weight.cpu() / step
        kernels = branch_kernels(blocks[name]) if name in blocks else {}
        branches = {part: kernel.cpu() / step for part, kernel in kernels.items()}
        edges = _edges([merged, *branches.values()])
        found.append(
            {
                "name": name,
                "bits": layer.quantizer.bits,
                "low": low,
                "high": high,
                "edges": edges,
                "branches": {part: _counts(values, edges, zeros=False) for part, values in branches.items()},
                "merged": _counts(merged, edges),
                "codes": torch.bincount((codes.flatten() - low).int(), minlength=high - low + 1).tolist(),
            }
        )
    return found


def _edges(tensors: Iterable[Tensor]) -> list[float]:
    """Those of at most ``MOST_BINS`` bins that hold all values: multiples of the bins' width, a power of two.

    >>> edges = _edges([torch.tensor([-2.3, 7.9])])
    >>> edges[:3], edges[-1], len(edges)
    ([-2.5, -2.25, -2.0], 8.0, 43)
    """
    ends = [value.item() for tensor in tensors for value in tensor.aminmax()]
    low, high = min(ends), max(ends)
    width = 2.0 ** math.ceil(math.log2(max(high - low, 1) / (MOST_BINS - 2)))
    first, last = math.floor(low / width), math.floor(high / width) + 1
    return [index * width for index in range(first, last + 1)]


def _counts(values: Tensor, edges: list[float], zeros: bool = True) -> list[int]:
    """How many values, or how many that are not zero, lie in ``edges[i] <= value < edges[i + 1]``."""
    width = edges[1] - edges[0]
    first = round(edges[0] / width)
    bins = (values.flatten() / width).floor_().sub_(first).int()
    counts: list[int] = torch.bincount(bins, minlength=len(edges) - 1).tolist()
    if not zeros and (found := values.numel() - int(values.count_nonzero())):
        counts[-first] -= found
    return counts
