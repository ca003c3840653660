"""How the integers of a network are scaled: every constant of the integer executor, and that no int32 can overflow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from repq_cli.deploy.fixed_point import INT32_MAX, Multiplier, quantize_multiplier
from repq_cli.errors import CheckError, ConfigError

if TYPE_CHECKING:
    from repq_cli.deploy.network import DeployedNet
    from repq_cli.deploy.operations.base import Node

FRACTION_BITS = 16  # of sums of several tensors, below the next step; more where an int32 has room for them
CODE_BITS = 9  # of codes, one more than they have


class Scaled(NamedTuple):
    """What is known of a tensor beforehand: ``value = integer * scale``, ``|integer| <= bound``.

    Both are ``float64`` and ``[C]``, or ``[1]`` where all channels have the same. codes: whether it is a quantizer's
    output, and so what a layer may read. values: what each integer from ``-bound`` to ``bound`` stands for where that
    is a function of codes; only quantizers read it.
    """

    scale: Tensor
    bound: Tensor
    codes: bool = False
    values: Tensor | None = None


def prepare_layer(node: Node, known: list[Scaled], deployed: DeployedNet) -> tuple[dict[str, Any], Scaled]:
    """Integer weights and biases; the sums' scale is the product of the steps (and of a batch norm's multiplier)."""
    name, stored, given = node["name"], deployed.stored, known[0]
    if len(known) > 1:
        raise ConfigError(
            f"The layer {name} multiplies by XNOR-Net's K, a floating-point map: quant.input_scale=false."
        )
    if node["bits"] == 32:
        raise ConfigError(
            f"The layer {name} has float weights, for which there are no integers: train it in codes "
            f"(quant.first_last=8, and without keep_float for it)."
        )
    if not given.codes:
        raise ConfigError(f"The layer {name} reads floating-point numbers: quantize activations for integers.")
    weight = deployed.codes(node).long()
    if node["weight_zero_point"]:
        weight = weight - stored[node["weight_zero_point"]].long()
    outputs = weight.shape[0]
    scale = (stored[node["weight_step"]].double().flatten() * given.scale).expand(outputs).clone()
    if node["multiplier"]:
        multiplier = stored[node["multiplier"]].double()
        # A negative one turns its channel's weights round; a dead channel keeps any scale, with weights of zero.
        weight = weight * multiplier.sign().long().view(-1, *[1] * (weight.dim() - 1))
        scale = torch.where(multiplier == 0, scale, scale * multiplier.abs())
    slope = stored[node["slope"]].double() if node.get("slope") else None
    bias = stored[node["bias"]].double() if node["bias"] else torch.zeros(outputs, dtype=torch.float64)
    worth = scale
    if node["multiplier"]:
        weight, scale = _room_for_bias(weight, scale, bias)
    coarse = scale > worth
    in_units = bias / scale
    if node["bias_step"]:  # integers, which no rounding may move: their step is a power of two of the sums'
        in_units = bias * (stored[node["bias_step"]].double() / scale).log2().round().exp2()
    reach = weight.abs().flatten(1).sum(1) * given.bound
    bound = reach + in_units.abs() + 1
    if slope is not None:
        bound = bound * slope.abs().clamp(min=1)
    _check(node, bound)
    left = (INT32_MAX / bound).log2().floor().long()
    finer = 2.0 ** left.double()
    codes = (in_units * finer).round()
    factor, float_bias = deployed.held(node, "factor"), deployed.held(node, "bias")
    if float_bias is not None and factor is not None:
        codes = torch.where(coarse, codes, _with_its_signs(codes, finer, reach, factor.abs(), float_bias))
    scale, bound = scale / finer, bound * finer
    constants: dict[str, Any] = {
        "weight": weight.to(torch.int32),
        "left": left.to(torch.int32),
        "bias": codes.to(torch.int32) if node["bias"] else None,
        "pad": round(node["pad_value"] / given.scale.item()) if node.get("pad_value") else 0,
        "slope": None if slope is None else quantize_multiplier(slope),
    }
    return constants, Scaled(scale, bound)


def _room_for_bias(weight: Tensor, scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Coarser integers where a batch norm has all but switched a channel off: its bias has to fit beside them.

    A bias of ``2**29`` units or more gets units that are so many times larger, and the weights, of which next to
    nothing is left then, are rounded to them.
    """
    excess = ((bias / scale).abs() / 2**29).clamp(min=1).log2().ceil()
    units = 2.0**excess
    coarse = (weight / units.view(-1, *[1] * (weight.dim() - 1))).round().long()
    return torch.where(units.view(-1, *[1] * (weight.dim() - 1)) > 1, coarse, weight), scale * units


def _with_its_signs(codes: Tensor, finer: Tensor, reach: Tensor, factor: Tensor, bias: Tensor) -> Tensor:
    """Bias codes that give each sum the sign of the executor's ``sum * factor + bias``, in float32.

    Rounding moves a bias by up to half a unit, and the executor's own by more; where a sum cancels it but for that,
    signs would differ. The least sum whose value is not negative is within one of the exact quotient.
    codes: one is worth ``factor / finer``. reach: the largest sum. factor: its magnitude, weights have its sign.
    """
    quotient = (-bias.double() / factor.double()).ceil().nan_to_num(nan=0.0).clamp(-reach, reach + 1)
    near = quotient + torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64)
    least = torch.where(near.float() * factor + bias >= 0, near, torch.inf).amin(0).clamp(-reach, reach + 1)
    infinite = torch.full_like(codes, torch.inf)
    lowest = torch.where(least <= reach, -least * finer, -infinite)  # for the least sum not to be negative
    highest = torch.where(least > -reach, (1 - least) * finer - 1, infinite)  # for the one below it to be
    return codes.clamp(lowest, highest)


def fine_scale(bound: float, steps: list[float]) -> float:
    """The finest that half of int32's range allows; ``FRACTION_BITS`` below the next step where that is finer still.

    Only in the second case can sums saturate, far behind the last code of every next step.

    >>> fine_scale(2.0**10, [2.0**-2]) == 2.0**-20  # 18 bits below the step: no sum saturates
    True
    >>> fine_scale(2.0**20, [2.0**-2]) == 2.0**-18  # 16 bits
    True
    >>> fine_scale(2.0**20, [2.0**-2, 2.0**6]) == 2.0**-15  # beyond, codes of the second step would saturate
    True
    """
    finest = bound / 2**30
    if not steps:
        return finest
    return min(finest, max(min(steps) * 2.0**-FRACTION_BITS, max(steps) * 2.0 ** (CODE_BITS - 30)))


def _check(node: Node, bound: Tensor) -> None:
    """CheckError if an int32 of this node could overflow."""
    largest = bound.max().item()
    if not largest <= INT32_MAX:
        raise CheckError(
            f"The layer {node['name']} could reach integers of {largest:.3g}, more than int32's {INT32_MAX}: "
            f"use fewer bits, or a larger step of its inputs."
        )


def one_scale(given: Scaled, steps: list[float]) -> tuple[Multiplier | None, Scaled]:
    """How the integers of channels get the same scale, None where they have it, and what they are then.

    steps: those of the quantizers that read them.
    """
    if len(given.scale) == 1:
        return None, Scaled(given.scale, given.bound.max().view(1), given.codes)
    bound = (given.scale * given.bound).max()
    scale = torch.tensor([fine_scale(bound.item(), steps)], dtype=torch.float64)
    return quantize_multiplier(given.scale / scale), Scaled(scale, (bound.view(1) / scale).clamp(max=INT32_MAX))


def with_room(given: Scaled) -> tuple[int, Scaled]:
    """By how much integers may be shifted to the left (below 0: have to be to the right), and what they are then."""
    left = int((INT32_MAX / given.bound.max()).log2().floor())
    return left, Scaled(given.scale * 2.0**-left, given.bound * 2.0**left)
