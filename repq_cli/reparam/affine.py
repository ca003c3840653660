"""Linear operations in sequence and in parallel as one convolution of what the first of them reads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repq_cli.reparam.algebra import Kernel, fold_batch_norm
from repq_cli.reparam.layout import Layout, Pair, Rectangle
from repq_cli.reparam.statistics import Statistics


class NoConvolution(ValueError):  # noqa: N818  # an answer rather than a fault
    """A composition that no single convolution equals at the border."""


@dataclass(frozen=True)
class Affine:
    """``y[o, t] = sum_ia weight[o, i, a] x[i, stride t + offset + dilation a] + bias[o]``, with zeros around ``x``.

    weight   ``[O, I/g, kh, kw]``; ``bias``: ``[O]``
    biased   whether zeros may give something else than zero
    source   whether it is ``x`` itself
    """

    weight: Tensor
    bias: Tensor
    offsets: Pair = (0, 0)
    strides: Pair = (1, 1)
    dilations: Pair = (1, 1)
    groups: int = 1
    biased: bool = False
    source: bool = False

    @property
    def sizes(self) -> Pair:
        """Taps of the kernel, rows and columns."""
        return self.weight.shape[2], self.weight.shape[3]

    @property
    def layout(self) -> Layout:
        """How a convolution with as many zeros on both sides walks over ``x``."""
        if max(self.offsets) > 0:
            raise NoConvolution("it leaves out what lies at the border")
        rows, columns = self.offsets
        inputs = self.weight.shape[1] * self.groups
        paddings = -rows, -columns
        return Rectangle(inputs, self.weight.shape[0], self.sizes, self.strides, paddings, self.dilations, self.groups)

    @property
    def is_point(self) -> bool:
        """Whether each output position reads the same position of ``x`` alone."""
        return self.sizes == (1, 1) and self.offsets == (0, 0) and self.strides == (1, 1)


def source(channels: int, like: Tensor) -> Affine:
    """``y = x``."""
    ones = torch.ones(channels, 1, 1, 1, dtype=like.dtype, device=like.device)
    return Affine(ones, torch.zeros_like(ones[:, 0, 0, 0]), groups=channels, source=True)


def then_convolve(first: Affine, kernel: Kernel, layout: Layout, biased: bool) -> Affine:
    """A convolution behind ``first``; ``biased``: whether it has a bias of its own.

    ``W[o,i,c] = sum_t sum_{s b + a = c} second[o,t,b] first[t,i,a]``, ``s`` the first's stride; group by group.
    Raises NoConvolution where the second pads with zeros what would be something else beyond the border: a biased map,
    or one that sees ``x`` from there.
    """
    if any(layout.paddings) and not (first.is_point and not first.biased):
        raise NoConvolution("zeros are put around a map that goes on beyond the border")
    groups = _gcd(first.groups, layout.groups)
    inner = regrouped(first.weight, first.groups, groups)
    outer = regrouped(kernel.weight, layout.groups, groups)
    bias = kernel.bias + (outer.sum((2, 3)).view(groups, -1, outer.shape[1]) @ first.bias.view(groups, -1, 1)).flatten()
    offsets, strides, dilations = [], [], []
    for place, side in enumerate(layout.sides):
        stride, spacing = first.strides[place], first.strides[place] * side.dilation
        offsets.append(first.offsets[place] - stride * side.padding)
        strides.append(stride * side.stride)
        moving = [first.dilations[place]] * (inner.shape[2 + place] > 1) + [spacing] * (side.size > 1)
        dilations.append(_gcd(*moving) or 1)
    inner = spread(inner, first.dilations, _pair(dilations))
    spacings = _pair(stride * dilation for stride, dilation in zip(first.strides, layout.dilations, strict=True))
    outer = spread(outer, spacings, _pair(dilations))
    return Affine(
        _composed(inner, outer, groups),
        bias,
        _pair(offsets),
        _pair(strides),
        _pair(dilations),
        groups,
        first.biased or biased,
    )


def _composed(inner: Tensor, outer: Tensor, groups: int) -> Tensor:
    """``[O, I/g, kh, kw]``: a true convolution of kernels, hence the flip."""
    if inner.shape[2:].numel() == outer.shape[2:].numel() == 1:
        first, second = (part.view(groups, -1, part.shape[1]) for part in (inner, outer))
        return (second @ first).view(outer.shape[0], -1, 1, 1)
    maps = inner.unflatten(0, (groups, -1)).permute(2, 0, 1, 3, 4).flatten(1, 2)
    padding = outer.shape[2] - 1, outer.shape[3] - 1
    return F.conv2d(maps, outer.flip(2, 3), padding=padding, groups=groups).transpose(0, 1)


def then_norm(first: Affine, norm: nn.BatchNorm2d, statistics: Statistics) -> Affine:
    """A batch norm behind ``first``."""
    kernel = Kernel(first.weight, first.bias)
    mean, var = statistics(norm, None if first.source else kernel, first.layout)
    weight, bias = fold_batch_norm(kernel, norm.weight, norm.bias, mean, var, norm.eps)
    return replace(first, weight=weight, bias=bias, biased=True, source=False)


def scaled(first: Affine, factor: Tensor) -> Affine:
    """``factor[o]`` times ``first``; ``factor``: ``[O]`` or ``[1]``."""
    weight = first.weight * factor.view(-1, 1, 1, 1)
    return replace(first, weight=weight, bias=first.bias * factor, source=False)


def shifted(first: Affine, term: Tensor) -> Affine:
    """``first`` plus ``term[o]``."""
    return replace(first, bias=first.bias + term, biased=True, source=False)


def added(first: Affine, second: Affine, sign: int = 1) -> Affine:
    """``first + sign * second``. Raises NoConvolution where their strides differ."""
    if first.strides != second.strides:
        raise NoConvolution("maps of different strides are added")
    groups = _gcd(first.groups, second.groups)
    dilations = _pair(_lattice(first, second, place) for place in (0, 1))
    offsets = _pair(map(min, first.offsets, second.offsets))
    ends = _pair(max(_end(first, place), _end(second, place)) for place in (0, 1))
    sizes = _pair(
        (end - offset) // dilation + 1 for end, offset, dilation in zip(ends, offsets, dilations, strict=True)
    )
    weights = [placed(part, offsets, sizes, dilations, groups) for part in (first, second)]
    return Affine(
        weights[0] + sign * weights[1],
        first.bias + sign * second.bias,
        offsets,
        first.strides,
        dilations,
        groups,
        first.biased or second.biased,
    )


def _end(part: Affine, place: int) -> int:
    """The offset of the last tap."""
    return part.offsets[place] + part.dilations[place] * (part.sizes[place] - 1)


def _lattice(first: Affine, second: Affine, place: int) -> int:
    """The widest dilation on which the taps of both lie."""
    spacings = [part.dilations[place] for part in (first, second) if part.sizes[place] > 1]
    return _gcd(*spacings, first.offsets[place] - second.offsets[place]) or 1


def placed(part: Affine, offsets: Pair, sizes: Pair, dilations: Pair, groups: int) -> Tensor:
    """The kernel of ``part`` inside a larger one, which begins at ``offsets``, ``[O, I/groups, *sizes]``."""
    weight = spread(regrouped(part.weight, part.groups, groups), part.dilations, dilations)
    before = [
        (own - offset) // dilation for own, offset, dilation in zip(part.offsets, offsets, dilations, strict=True)
    ]
    after = [size - start - own for size, start, own in zip(sizes, before, weight.shape[2:], strict=True)]
    padding = [before[1], after[1], before[0], after[0]]
    return F.pad(weight, padding) if any(padding) else weight


def placed_in(part: Affine, layout: Layout) -> Kernel:
    """``part`` as a kernel of the given layout, in which its taps lie."""
    rows, columns = layout.paddings
    weight = placed(part, (-rows, -columns), layout.sizes, layout.dilations, layout.groups)
    return Kernel(weight, part.bias)


def regrouped(weight: Tensor, groups: int, fewer: int) -> Tensor:
    """The kernel ``[O, I/groups, kh, kw]`` as one of ``fewer`` groups, a divisor, with zeros between old groups."""
    if groups == fewer:
        return weight
    inside = groups // fewer
    blocks = weight.view(fewer, inside, -1, *weight.shape[1:])
    diagonal = torch.eye(inside, dtype=weight.dtype, device=weight.device)
    spread_out = torch.einsum("gnoihw,nm->gnomihw", blocks, diagonal)
    return spread_out.reshape(weight.shape[0], -1, *weight.shape[2:])


def spread(weight: Tensor, dilations: Pair, finer: Pair) -> Tensor:
    """The kernel's taps, ``dilations`` apart, as a kernel whose taps are ``finer`` apart, zeros between."""
    steps = [
        coarse // fine if size > 1 else 1 for coarse, fine, size in zip(dilations, finer, weight.shape[2:], strict=True)
    ]
    if steps == [1, 1]:
        return weight
    sizes = [(size - 1) * step + 1 for size, step in zip(weight.shape[2:], steps, strict=True)]
    found = weight.new_zeros(*weight.shape[:2], *sizes)
    found[:, :, :: steps[0], :: steps[1]] = weight
    return found


def _pair(numbers: Iterable[int]) -> Pair:
    rows, columns = numbers
    return rows, columns


def _gcd(*numbers: int) -> int:
    """As ``math.gcd``, which torch's compiler does not follow."""
    found = 0
    for number in numbers:
        rest = number
        while rest:
            found, rest = rest, found % rest
    return abs(found)
