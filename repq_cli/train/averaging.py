"""``qat.ema``: an average of the weights over training steps, which is what is validated, kept and shipped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """The exponential average of all parameters and statistics of ``net``.

    After update n (from 1): ``a <- d_n a + (1 - d_n) w`` with ``d_n = min(decay, n / (n + 9))``, so that the first
    weights, which nothing has trained, are soon forgotten. Steps of quantizers are averaged with the kernels that they
    belong to, running statistics with the weights that they were taken of; counts are the net's own.
    Source: the decay's ramp as in TensorFlow's ExponentialMovingAverage, ``(1 + n) / (10 + n)`` counted from 0.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.net, self.decay, self.updates = net, decay, 0
        self.average = {name: tensor.detach().clone() for name, tensor in _averaged(net)}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are."""
        self.updates += 1
        decay = min(self.decay, self.updates / (self.updates + 9))
        weights = [tensor for _, tensor in _averaged(self.net)]
        get_ema_multi_avg_fn(decay)(list(self.average.values()), weights, self.updates)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the net has the average and the average has the net's weights; what is changed inside stays so."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, tensor in _averaged(self.net):
            weight = tensor.clone()
            tensor.copy_(self.average[name])
            self.average[name].copy_(weight)

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to hold."""
        return {"updates": self.updates, "average": self.average}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``."""
        self.updates = state["updates"]
        for name, tensor in self.average.items():
            tensor.copy_(state["average"][name])


def validated_net(net: Mapping[str, Tensor], tools: Mapping[str, Any]) -> dict[str, Tensor]:
    """Of a checkpoint's net and what its tools had: the state that was validated."""
    average = tools.get("ema", {}).get("average", {})
    return {name: average.get(name, tensor) for name, tensor in net.items()}


def _averaged(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    tensors = chain(net.named_parameters(), net.named_buffers())
    return ((name, tensor) for name, tensor in tensors if tensor.is_floating_point())
