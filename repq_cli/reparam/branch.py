"""Linear branches: each runs on its own, and each merges into one kernel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from repq_cli.precision import full_precision
from repq_cli.reparam.algebra import Kernel, add_kernels, convolve, fold_batch_norm, identity_kernel
from repq_cli.reparam.layout import Layout, Pair
from repq_cli.reparam.statistics import RunningStatistics, Statistics


class Branch(nn.Module):
    """A linear map of the block's input; ``merged`` gives it as ``(weight, bias)``.

    ``merged`` is differentiable, has no side effects of its own and reads batch-norm statistics only from its argument.
    """

    def merged(self, statistics: Statistics) -> Kernel:
        raise NotImplementedError


def fold(norm: nn.BatchNorm2d, kernel: Kernel, statistics: Statistics, geometry: Layout) -> Kernel:
    """``kernel``, a convolution of the given geometry, with the batch norm behind it absorbed."""
    mean, var = statistics(norm, kernel, geometry)
    return fold_batch_norm(kernel, norm.weight, norm.bias, mean, var, norm.eps)


def without_bias(weight: Tensor) -> Kernel:
    """``weight`` with a bias of zeros."""
    return Kernel(weight, weight.new_zeros(weight.shape[0]))


def kernel_of(conv: nn.Conv2d) -> Kernel:
    """A convolution's own weight and bias, which may be absent."""
    return without_bias(conv.weight) if conv.bias is None else Kernel(conv.weight, conv.bias)


class ConvBranch(Branch):
    """Convolution, then batch norm unless ``batch_norm`` is off; ``bias``: the convolution has one of its own.

    Shapes: conv.weight ``[O, I/g, kh, kw]``, centred in the block's kernel; norm ``[O]``.
    """

    def __init__(
        self,
        geometry: Layout,
        kernel_size: Pair | None = None,
        batch_norm: bool = True,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.geometry = geometry
        size = kernel_size or geometry.sizes
        # Stride and padding are the block's: ``convolve`` knows them, and crops where a small kernel sits in a large,
        # unpadded one.
        self.conv = nn.Conv2d(geometry.in_channels, geometry.out_channels, size, groups=geometry.groups, bias=bias)
        self.norm = nn.BatchNorm2d(geometry.out_channels) if batch_norm else None

    @classmethod
    def of(cls, geometry: Layout, conv: nn.Conv2d, norm: nn.BatchNorm2d | None) -> ConvBranch:
        """A branch of layers that there are already; how ``conv`` lies over its input is the geometry's."""
        rows, columns = conv.weight.shape[2:]
        with torch.device("meta"):
            branch = cls(geometry, (rows, columns), batch_norm=norm is not None, bias=conv.bias is not None)
        branch.conv, branch.norm = conv, norm
        return branch.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        y = convolve(x, self.conv.weight, self.geometry, self.conv.bias)
        return y if self.norm is None else self.norm(y)

    def merged(self, statistics: Statistics) -> Kernel:
        kernel = kernel_of(self.conv)
        return kernel if self.norm is None else fold(self.norm, kernel, statistics, self.geometry)


class IdentityBranch(Branch):
    """The input itself, or its batch norm; legal where the block keeps its input's shape."""

    like: Tensor  # has the block's device and dtype, where there is no batch norm to ask

    def __init__(self, geometry: Layout, batch_norm: bool = True) -> None:
        super().__init__()
        if not geometry.keeps_shape:
            raise ValueError(
                f"An identity branch needs output and input of one shape (stride 1, an odd kernel padded by half of "
                f"it, as many outputs as inputs), and {geometry} has not."
            )
        self.geometry = geometry
        self.norm = nn.BatchNorm2d(geometry.out_channels) if batch_norm else None
        if self.norm is None:
            self.register_buffer("like", torch.zeros(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x if self.norm is None else self.norm(x)

    def merged(self, statistics: Statistics) -> Kernel:
        geometry = self.geometry
        like = self.like if self.norm is None else self.norm.weight
        kernel = without_bias(identity_kernel(geometry.in_channels, geometry.groups, like))
        if self.norm is None:
            return kernel
        mean, var = statistics(self.norm, None, geometry)
        return fold_batch_norm(kernel, self.norm.weight, self.norm.bias, mean, var, self.norm.eps)


class SumBranch(Branch):
    """``BN(sum_j branch_j(x))``: parallel branches under one batch norm, or, without it, their bare sum.

    A sum without batch norms inside is merged before it convolves, in training too: one convolution instead of one for
    every branch, and the same function and gradients (arXiv 2204.00826).
    """

    def __init__(self, geometry: Layout, branches: Mapping[str, Branch], batch_norm: bool = True) -> None:
        super().__init__()
        self.geometry = geometry
        self.branches = nn.ModuleDict(branches)
        self.linear = not any(isinstance(module, nn.BatchNorm2d) for module in self.branches.modules())
        self.norm = nn.BatchNorm2d(geometry.out_channels) if batch_norm else None

    def forward(self, x: Tensor) -> Tensor:
        y = self._merge_and_run(x) if self.linear else self._run(x)
        return y if self.norm is None else self.norm(y)

    def _run(self, x: Tensor) -> Tensor:
        outputs = [branch(x) for branch in self.branches.values()]
        return sum(outputs[1:], outputs[0])

    def _merge_and_run(self, x: Tensor) -> Tensor:
        weight, bias = self._sum(RunningStatistics())
        return convolve(x, weight, self.geometry, bias)

    def _sum(self, statistics: Statistics) -> Kernel:
        if not torch.compiler.is_compiling() and self in SUMS and not torch.is_grad_enabled():
            return SUMS[self]
        branches = cast("Iterable[Branch]", self.branches.values())
        with full_precision():  # in training as well, where this runs inside ``forward``
            return add_kernels((branch.merged(statistics) for branch in branches), self.geometry.sizes)

    def merged(self, statistics: Statistics) -> Kernel:
        kernel = self._sum(statistics)
        return kernel if self.norm is None else fold(self.norm, kernel, statistics, self.geometry)


# Of sums without batch norms, inside ``kept_sums``.
SUMS: MutableMapping[SumBranch, Kernel] = WeakKeyDictionary()


@contextmanager
def kept_sums(net: nn.Module) -> Iterator[None]:
    """Inside, and without gradients, sums that are merged before they convolve are those that they are on entry.

    Their weights must not change inside. What follows of statistics is computed anew each time.
    """
    sums = [part for part in net.modules() if isinstance(part, SumBranch) and part.linear and part not in SUMS]
    with torch.no_grad():
        SUMS.update({part: part._sum(RunningStatistics()) for part in sums})
    try:
        yield
    finally:
        for part in sums:
            del SUMS[part]


class ScaledBranch(Branch):
    """``scale[o]`` times the output of another branch; ``scale: [O]`` is learned and starts at ``initial``."""

    def __init__(self, branch: Branch, out_channels: int, initial: float) -> None:
        super().__init__()
        self.branch = branch
        self.scale = nn.Parameter(torch.full((out_channels,), initial))

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x) * self.scale.view(-1, 1, 1)

    def merged(self, statistics: Statistics) -> Kernel:
        weight, bias = self.branch.merged(statistics)
        return Kernel(weight * self.scale.view(-1, 1, 1, 1), bias * self.scale)
