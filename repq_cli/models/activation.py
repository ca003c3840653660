"""The nonlinearities of networks, by the name that ``model.activation`` gives."""

from __future__ import annotations

from typing import Literal

from torch import nn

Activation = Literal["relu", "relu6", "hardtanh"]

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "relu6": nn.ReLU6, "hardtanh": nn.Hardtanh}


def make_activation(name: Activation) -> nn.Module:
    """A new one."""
    return ACTIVATIONS[name]()


def gives_signs(name: Activation) -> bool:
    """Whether what comes out has values below zero."""
    return name == "hardtanh"
