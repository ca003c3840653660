"""A batch that several processes hold together: its size, and sums over all of it, with their gradients.

Inside ``sharing``, which a training step opens, whatever depends on a batch as a whole (the statistics of batch norm,
observed ranges) asks here. Elsewhere, and in a process of its own, a batch is what the process holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Shared(NamedTuple):
    """A batch of ``images``, of which this rank holds every ``ranks``-th, and of which statistics are taken.

    whole: the images that one update learns from; more where gradients are accumulated.
    """

    rank: int
    ranks: int
    images: int
    whole: int


_shared: Shared | None = None


@contextmanager
def sharing(batch: Shared | None) -> Iterator[None]:
    """Inside, tensors of activations are this rank's part of ``batch``; None: they are nobody else's."""
    global _shared
    before, _shared = _shared, batch
    try:
        yield
    finally:
        _shared = before


def is_shared() -> bool:
    """Whether other ranks hold other images of the same batch."""
    return _shared is not None and _shared.ranks > 1


def images_of_all(images: int) -> int:
    """How many images all ranks together hold of the batch of which this one has ``images``."""
    return images if _shared is None else _shared.images


def images_of_update(images: int) -> int:
    """How many images the update learns from that ``images`` are a part of."""
    return images if _shared is None else _shared.whole


def own_of_first(images: int) -> int:
    """How many of the batch's first ``images`` this rank holds: they are its own first ones."""
    return images if _shared is None else len(range(_shared.rank, images, _shared.ranks))


def summed(values: Tensor) -> Tensor:
    """The sum over all ranks, equal bit for bit on each; its gradient is the sum of theirs."""
    return _Summed.apply(values) if is_shared() else values


class _Summed(torch.autograd.Function):
    """All ranks have to call it in the same order, forward and backward: they compute the same graph."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return _added_up(values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _added_up(grads[0])


def _added_up(values: Tensor) -> Tensor:
    total = values.contiguous().clone()
    dist.all_reduce(total)
    return total


def as_it_is(running: Tensor) -> Tensor:
    """A running statistic that the same step is going to change; no gradient.

    The compiler would compute anew in the backward pass what it needs of it, from the changed one; what an operation of
    ours has given it keeps.
    """
    return _kept(running) if torch.compiler.is_compiling() else running


@torch.library.custom_op("repq::kept", mutates_args=())
def _kept(values: Tensor) -> Tensor:
    return values.clone()


@_kept.register_fake
def _(values: Tensor) -> Tensor:
    return torch.empty_like(values)


def extremes(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest and the highest value that any rank has seen; no gradient."""
    if not is_shared():
        return low, high
    both = torch.stack([-low, high])
    dist.all_reduce(both, dist.ReduceOp.MAX)
    return -both[0], both[1]


def mean_by_channel(values: Tensor) -> Tensor:
    """``[1, C, 1, 1]``, over all ranks' images ``[B, C, H, W]`` and their positions."""
    if not is_shared():
        return values.mean((0, 2, 3), keepdim=True)
    positions = values.shape[2:].numel()
    return summed(values.sum((0, 2, 3), keepdim=True)) / (images_of_all(values.shape[0]) * positions)


def uniform_like(images: Tensor) -> Tensor:
    """Random numbers in [0, 1) for a batch's images: those that one process would draw for them."""
    if not is_shared():
        return torch.rand_like(images)
    assert _shared is not None
    by_pixel = images.dim() == 4 and not images.is_contiguous()  # numbers are drawn in the order of memory
    whole = torch.empty(
        (_shared.images, *images.shape[1:]),
        dtype=images.dtype,
        device=images.device,
        memory_format=torch.channels_last if by_pixel else torch.contiguous_format,
    )
    return torch.rand_like(whole)[_shared.rank :: _shared.ranks]
