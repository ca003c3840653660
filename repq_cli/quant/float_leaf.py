"""A part of a network that stays in floating point and is not looked into."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn


class FloatLeaf(nn.Module):
    """``module``, whose forward pass cannot be followed: one operation of the network, without a deployed form."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


def is_kept(name: str, keep_float: Collection[str]) -> bool:
    """Whether the module of that name is one of ``keep_float``, or inside one.

    >>> is_kept("head.fc", ["head"]), is_kept("header", ["head"])
    (True, False)
    """
    return any(f"{name}.".startswith(f"{kept}.") for kept in keep_float)
