"""A part of a network that stays in floating point and is not looked into."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from repq_cli.answers import mapped, tensors


class FloatLeaf(nn.Module):
    """``module``, whose forward pass cannot be followed: one operation of the network, without a deployed form."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if any(tensor.is_meta for tensor in tensors([args, kwargs])):
            return self._without_data(args, kwargs)
        return self.module(*args, **kwargs)

    @torch.no_grad()
    def _without_data(self, args: Any, kwargs: Any) -> Any:
        """What it gives, without data, for such tensors: as it gives it for zeros, since it may look at values."""
        module = copy.deepcopy(self.module).to_empty(device="cpu")
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.zero_()

        def zeros(value: Any) -> Any:
            return torch.zeros_like(value, device="cpu") if isinstance(value, Tensor) else value

        def shape(value: Any) -> Any:
            return value.to("meta") if isinstance(value, Tensor) else value

        return mapped(module(*mapped(args, zeros), **mapped(kwargs, zeros)), shape)


def is_kept(name: str, keep_float: Collection[str]) -> bool:
    """Whether the module of that name is one of ``keep_float``, or inside one.

    >>> is_kept("head.fc", ["head"]), is_kept("header", ["head"])
    (True, False)
    """
    return any(f"{name}.".startswith(f"{kept}.") for kept in keep_float)
