"""A network whose gradients are averaged over ranks."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from repq_cli.shared_norm import share_norms
from repq_cli.train.options import RuntimeOptions
from repq_cli.train.world import World


class _Forward(nn.Module):
    """A network, and what gives its outputs in its place."""

    def __init__(self, net: nn.Module, forward: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__()
        self.net = net
        self._outputs = [forward or net]  # in a list, since it is no second module

    def forward(self, x: Tensor) -> Tensor:
        return self._outputs[0](x)


def average_buffers(net: nn.Module, world: World, runtime: RuntimeOptions) -> None:
    """Where each rank follows its own images, all take the mean of their running statistics."""
    for buffer in net.buffers():
        if runtime.sync_stats is False and world.size > 1 and buffer.is_floating_point():
            world.added_up(buffer).div_(world.size)


def in_parallel(
    net: nn.Module, forward: Callable[[Tensor], Tensor] | None, device: torch.device
) -> DistributedDataParallel:
    """``forward``, or ``net``, with averaged gradients; batch norms look at the whole batch from now on.

    Parameters are rank 0's. Buffers need no broadcast: all ranks compute the same.
    """
    share_norms(net)
    ids = None if device.type == "cpu" else [device]
    with warnings.catch_warnings():  # the name that torch 2.14 has for it torch 2.9 has not
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        parallel = DistributedDataParallel(_Forward(net, forward), device_ids=ids, broadcast_buffers=False)
    # Of kernels with one input channel, whose gradients have other strides and the same order in memory.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    return parallel
