"""The float weights behind a layer's codes: what a training loop and its optimiser owe them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from repq_cli.quant.layers import quant_layers


def clip_latent_weights(net: nn.Module) -> None:
    """What a training loop owes the quantizers after every update: float weights stay within their bounds."""
    clip_to(bounded_latent_weights(net))


def bounded_latent_weights(net: nn.Module) -> list[tuple[nn.Parameter, float]]:
    """Float weights that have a bound, with it."""
    bounds = [(layer, layer.quantizer.latent_bound) for layer in quant_layers(net).values()]
    return [(weight, bound) for layer, bound in bounds if bound is not None for weight in layer.latent_weights()]


@torch.no_grad()
def clip_to(bounded: Iterable[tuple[nn.Parameter, float]]) -> None:
    """Each weight into ``[-bound, bound]``."""
    for weight, bound in bounded:
        weight.clamp_(-bound, bound)


def undecayed_latent_weights(net: nn.Module) -> list[nn.Parameter]:
    """Float weights that weight decay must not pull at: their magnitude means nothing."""
    layers = quant_layers(net).values()
    return [weight for layer in layers if not layer.quantizer.latent_decays for weight in layer.latent_weights()]
