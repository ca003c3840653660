"""Bits for each layer within a budget of bit operations, from what each costs the outputs by itself."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from repq_cli.deploy.cost import layer_costs
from repq_cli.deploy.freeze import freeze
from repq_cli.devices import in_float64
from repq_cli.errors import ConfigError
from repq_cli.modes.catalogue.merged import PTQ
from repq_cli.modes.compose import compose, merge_blocks
from repq_cli.modes.options import ModeOptions
from repq_cli.modes.partly_quantized import quantizing_only
from repq_cli.quant.frozen_layers import frozen_layers
from repq_cli.quant.init import Initialiser
from repq_cli.quant.layers import quant_layers
from repq_cli.quant.measures import decibels
from repq_cli.quant.options import Bits, QuantOptions
from repq_cli.quant.quantizer import Quantizer
from repq_cli.quant.wiring import input_quantizers, node_name

WIDTHS: tuple[Bits, ...] = (2, 3, 4, 6, 8)


class Group(NamedTuple):
    """Layers that read one tensor, and so have the same bits.

    macs   multiply-accumulates of all of them for one image
    noise  by width: squared error of the network's outputs with only these layers' weights and inputs quantized, over
           the outputs' squares
    """

    layers: tuple[str, ...]
    macs: int
    noise: Mapping[Bits, float]


class Network(NamedTuple):
    """The groups that a budget can be spent on, and the bit operations of all other layers."""

    groups: list[Group]
    fixed: int

    def bops(self, bits: Sequence[Bits]) -> int:
        """Bit operations for one image, with so many bits for each group."""
        return self.fixed + sum(group.macs * width**2 for group, width in zip(self.groups, bits, strict=True))

    def noise(self, bits: Sequence[Bits]) -> float:
        """The outputs' noise over their signal, as if that of the groups added up."""
        return sum(group.noise[width] for group, width in zip(self.groups, bits, strict=True))


@torch.no_grad()
def measured(
    fp: nn.Module, quant: QuantOptions, batches: Sequence[Tensor], shape: Sequence[int], done: Callable[[], object]
) -> Network:
    """Every group's noise at every width, on ``batches``, before any QAT.

    fp: the net in full precision, in eval mode, merged by its running statistics. quant: the first and the last layer
    keep the bits that it gives them. shape: of one image. done: is called after each width.
    """
    usual = compose(fp, ModeOptions(PTQ.name), quant).eval()
    costs = layer_costs(freeze(copy.deepcopy(usual).cpu(), {"input_shape": list(shape)}))
    readers: dict[str, list[str]] = {}
    for layer, tensor in input_quantizers(usual).items():
        readers.setdefault(tensor, []).append(layer)
    edges = fp.edges()  # type: ignore[operator]
    free = {tensor: layers for tensor, layers in readers.items() if edges.isdisjoint([tensor, *layers])}
    macs = {tensor: sum(costs[node_name(name)].macs for name in layers) for tensor, layers in free.items()}
    fixed = sum(cost.bops for cost in costs.values())
    fixed -= sum(costs[node_name(name)].bops for layers in free.values() for name in layers)

    float_net = merge_blocks(fp)
    inputs = _inputs(float_net, free, batches[0])
    expected = [float_net(x) for x in batches]
    noise: dict[str, dict[Bits, float]] = {tensor: {} for tensor in free}
    for width in WIDTHS:
        names = {name: width for layers in free.values() for name in layers}
        net = compose(fp, ModeOptions(PTQ.name), replace(quant, layers={**(quant.layers or {}), **names})).eval()
        _calibrate(net, free, inputs, quant.init)
        for tensor, layers in free.items():
            kept = {tensor, *(f"{name}.quantizer" for name in layers)}
            with quantizing_only(net, kept, batches[0]), frozen_layers(net):
                noise[tensor][width] = _relative_error([net(x) for x in batches], expected)
        done()
    return Network([Group(tuple(layers), macs[tensor], noise[tensor]) for tensor, layers in free.items()], fixed)


def _inputs(net: nn.Module, names: Mapping[str, object], x: Tensor) -> dict[str, Tensor]:
    """The tensors that quantizers would get in floating point."""
    found: dict[str, Tensor] = {}
    hooks = [
        net.get_submodule(name).register_forward_pre_hook(
            lambda module, inputs, name=name: found.__setitem__(name, inputs[0])
        )
        for name in names
    ]
    net(x)
    for hook in hooks:
        hook.remove()
    return found


def _calibrate(
    net: nn.Module, free: Mapping[str, Sequence[str]], inputs: Mapping[str, Tensor], initialiser: Initialiser
) -> None:
    layers = quant_layers(net)
    for tensor, names in free.items():
        quantizer = net.get_submodule(tensor)
        assert isinstance(quantizer, Quantizer)
        quantizer.calibrate(inputs[tensor], initialiser)
        for name in names:
            layers[name].calibrate(initialiser)


def _relative_error(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    pairs = list(zip(outputs, expected, strict=True))
    error = sum(in_float64(y - exact).square().sum().item() for y, exact in pairs)
    return error / sum(in_float64(exact).square().sum().item() for _, exact in pairs)


def allocate(network: Network, budget: float) -> list[Bits]:
    """Bits for each group, whose noise together is least within ``budget`` bit operations.

    From the fewest bits on, the step up that takes away most noise for each bit operation is taken, as long as one
    fits: steps lie on the lower convex hull of a group's noise over its cost. No other choice of that cost or less has
    less noise, but for what the last step that did not fit would have taken away. Raises ConfigError for a budget that
    even the fewest bits exceed.
    """
    hulls = [_hull(group) for group in network.groups]
    places = [0] * len(hulls)

    def bits(places: Sequence[int]) -> list[Bits]:
        return [hull[place] for hull, place in zip(hulls, places, strict=True)]

    least = network.bops([min(WIDTHS)] * len(hulls))
    if budget < least:
        raise ConfigError(
            f"budget={budget / 1e9:g} is less than the {least / 1e9:.3g} GBOPs of this network with {min(WIDTHS)} bits "
            f"for every layer that may have other bits: name at least that."
        )
    while True:
        steps = []
        for index, hull in enumerate(hulls):
            taken = [place + (other == index) for other, place in enumerate(places)]
            if taken[index] < len(hull) and network.bops(bits(taken)) <= budget:
                gained = network.noise(bits(places)) - network.noise(bits(taken))
                steps.append((gained / (network.bops(bits(taken)) - network.bops(bits(places))), taken))
        if not steps:
            return bits(places)
        places = max(steps)[1]


def _hull(group: Group) -> list[Bits]:
    """The widths from the fewest bits on, each of which takes away most noise for each bit operation more."""
    hull = [min(WIDTHS)]
    while True:
        here = hull[-1]
        wider = [width for width in WIDTHS if width > here and group.noise[width] < group.noise[here]]
        if not wider:
            return hull
        hull.append(max(wider, key=lambda to: (group.noise[here] - group.noise[to]) / (to**2 - here**2)))


def spending(network: Network, budget: float) -> dict[str, Any]:
    """What ``budget`` bit operations buy, as numbers for diagnosis.json: ``noise_db`` is of signal over noise."""

    def cost_and_noise(bits: Sequence[Bits]) -> dict[str, Any]:
        return {"gbops": network.bops(bits) / 1e9, "noise_db": decibels(1.0, network.noise(bits))}

    bits = allocate(network, budget)
    return {
        "gbops": budget / 1e9,
        "chosen": cost_and_noise(bits),
        "same_bits": {str(width): cost_and_noise([width] * len(bits)) for width in WIDTHS},
        "groups": [
            {
                "layers": list(group.layers),
                "macs": group.macs,
                "noise_db": {str(width): decibels(1.0, noise) for width, noise in group.noise.items()},
                "bits": width,
            }
            for group, width in zip(network.groups, bits, strict=True)
        ],
    }
