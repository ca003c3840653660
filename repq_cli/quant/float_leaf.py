"""A part of a network that stays in floating point and is not looked into."""

from __future__ import annotations

from typing import Any

from torch import nn


class FloatLeaf(nn.Module):
    """``module``, whose forward pass cannot be followed: one operation of the network, without a deployed form."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)
