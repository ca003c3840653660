"""The deployed network in integers alone: codes in, int32 sums, fixed-point multipliers, codes out.

Between the first and the last code there is no floating-point number (arXiv 1712.05877, section 2.2). Every tensor is
integers with a scale: codes without their zero-point with the quantizer's step, sums with one scale per channel. How a
sum becomes codes is decided once, when the network is made; so is whether an int32 could overflow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repq_cli.deploy.fixed_point import INT32_MAX, Multiplier, quantize_multiplier, rescale
from repq_cli.deploy.network import DeployedNet, Node
from repq_cli.errors import CheckError, ConfigError

ADDEND_MAX = 2**30 - 1
FRACTION_BITS = 16  # of sums of several tensors, below the next step; more where an int32 has room for them


@dataclass(frozen=True)
class Scaled:
    """What is known of a tensor beforehand: ``value = integer * scale``, ``|integer| <= bound``.

    Both are ``float64`` and ``[C]``, or ``[1]`` where all channels have the same. codes: whether it is a quantizer's
    output, and so what a layer may read.
    """

    scale: Tensor
    bound: Tensor
    codes: bool = False


class IntegerNet(nn.Module):
    """``DeployedNet`` in integers; from float images to float answers, which are the last integers times their scale.

    Raises ConfigError for a network that keeps floating-point numbers inside (float layers, ``quant.residual=fp``,
    XNOR-Net's K), CheckError, with the layer, where an int32 could overflow.
    """

    def __init__(self, deployed: DeployedNet) -> None:
        super().__init__()
        self.deployed = deployed
        self.graph, self.nodes = deployed.graph, deployed.nodes
        self.constants: dict[str, dict[str, Any]] = {}
        _refuse_raw_shortcuts(self.nodes)
        known: dict[str, Scaled | None] = {self.graph["input"]: None}  # None: still floating point
        for node in self.nodes:
            constants, out = _prepare(node, [known[name] for name in node["inputs"]], self)
            self.constants[node["name"]] = constants
            known[node["name"]] = out
        self.known = known

    def next_step(self, name: str) -> float | None:
        """The step of the quantizer that a node's output reaches; None for an answer, or where only signs matter."""
        for node in self.nodes:
            if name in node["inputs"] and node["op"] == "quantize":
                return None if node["by_sign"] else float(self.deployed.stored[node["step"]])
            if name in node["inputs"]:
                found = self.next_step(node["name"])
                if found is not None:
                    return found
        return None

    def forward(self, x: Tensor) -> Tensor:
        name = self.graph["output"]
        out = self.run(x)[name]
        scale = self._known(name).scale.float()
        return out.float() * (scale if len(scale) == 1 else scale.view(-1, *[1] * (out.dim() - 2)))

    def _known(self, name: str) -> Scaled:
        found = self.known[name]
        assert found is not None
        return found

    @property
    def halo(self) -> int:
        """As ``DeployedNet.halo``."""
        return self.deployed.halo

    @torch.no_grad()
    def run(self, x: Tensor, reference: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Every node's integers (``int32`` by value) by name.

        With the ``reference`` values of the floating-point executor each layer is given the reference's codes, so that
        differences do not add up: those between the results and the reference are one layer's own.
        """
        values, fed = {self.graph["input"]: x}, {self.graph["input"]: x}
        for node in self.nodes:
            name = node["name"]
            inputs = [fed[source] for source in node["inputs"]]
            values[name] = getattr(self, f"_{node['op']}")(node, self.constants[name], *inputs)
            fed[name] = values[name]
            if reference is not None and node["op"] == "quantize":
                fed[name] = self.as_codes(node, reference[name])
        return values

    def as_codes(self, node: Node, value: Tensor) -> Tensor:
        """A quantizer's output of the floating-point executor as integers without zero-point."""
        return (value / self.deployed.stored[node["step"]]).round().to(torch.int32)

    def _quantize(self, node: Node, constants: dict[str, Any], x: Tensor) -> Tensor:
        if x.is_floating_point():  # the image: the first codes
            return self.as_codes(node, self.deployed._quantize(node, x))
        if node["by_sign"]:
            return torch.where(x >= 0, node["high"], node["low"]).to(torch.int32)
        codes = _rescaled(x, constants["multiplier"]) + constants["zero_point"]
        return (codes.clamp(node["low"], node["high"]) - constants["zero_point"]).to(torch.int32)

    def _conv(self, node: Node, constants: dict[str, Any], x: Tensor) -> Tensor:
        padding = node["padding"]
        if constants["pad"] and padding:
            x, padding = F.pad(x, [padding] * 4, value=constants["pad"]), 0
        sums = F.conv2d(x, constants["weight"], None, node["stride"], padding, 1, node["groups"])
        y = _with_bias(sums, constants)
        return y if node["activation"] == "none" else getattr(self, f"_{node['activation']}")(node, constants, y)

    def _linear(self, node: Node, constants: dict[str, Any], x: Tensor) -> Tensor:
        return _with_bias(x @ constants["weight"].T, constants)

    def _add(self, node: Node, constants: dict[str, Any], x: Tensor, y: Tensor) -> Tensor:
        first, second = constants["multipliers"]
        return _saturated(_rescaled(x, first)) + _saturated(_rescaled(y, second))

    def _global_average_pool(self, node: Node, constants: dict[str, Any], x: Tensor) -> Tensor:
        total = x.long().sum((2, 3), keepdim=True) << constants["left"]
        count = x.shape[2] * x.shape[3]
        rounded = torch.div(2 * total + count * total.sign(), 2 * count, rounding_mode="trunc")
        return rounded.to(torch.int32)

    def _max_pool(self, node: Node, constants: dict[str, Any], x: Tensor) -> Tensor:
        # Padding never wins: it is below every integer.
        padded = F.pad(x, [node["padding"]] * 4, value=-INT32_MAX)
        windows = padded.unfold(2, node["size"], node["stride"]).unfold(3, node["size"], node["stride"])
        return windows.amax((-1, -2))

    def _relu(self, node: Node, constants: dict[str, Any], x: Tensor) -> Tensor:
        return x.clamp(min=0)

    def _relu6(self, node: Node, constants: dict[str, Any], x: Tensor) -> Tensor:
        return x.clamp(min=0).minimum(constants["limit"].view(1, -1, 1, 1))

    def _hardtanh(self, node: Node, constants: dict[str, Any], x: Tensor) -> Tensor:
        limit = constants["limit"].view(1, -1, 1, 1)
        return x.minimum(limit).maximum(-limit)

    def _prelu(self, node: Node, constants: dict[str, Any], x: Tensor) -> Tensor:
        return torch.where(x < 0, _rescaled(x, constants["slope"]).to(torch.int32), x)

    def _pixel_shuffle(self, node: Node, constants: dict[str, Any], x: Tensor) -> Tensor:
        return F.pixel_shuffle(_saturated(_rescaled(x, constants["multiplier"])), node["scale"])

    def _nearest_upsample(self, node: Node, constants: dict[str, Any], x: Tensor) -> Tensor:
        return x.repeat_interleave(node["scale"], 2).repeat_interleave(node["scale"], 3)

    def _flatten(self, node: Node, constants: dict[str, Any], x: Tensor) -> Tensor:
        return torch.flatten(x, 1)


def _saturated(x: Tensor) -> Tensor:
    """Within half of int32's range, so that two of them can be added: 2**14 of the next steps, far behind any clip."""
    return x.clamp(-ADDEND_MAX, ADDEND_MAX).to(torch.int32)


def _with_bias(sums: Tensor, constants: dict[str, Any]) -> Tensor:
    """The sums of a layer, shifted to the left as far as an int32 allows, plus its bias, which is that much finer."""
    shape = (1, -1, *[1] * (sums.dim() - 2))
    y = sums << constants["left"].view(shape)
    return y if constants["bias"] is None else y + constants["bias"].view(shape)


def _rescaled(x: Tensor, multiplier: Multiplier) -> Tensor:
    """``rescale`` with one multiplier per channel, the second dimension."""
    shape = (1, -1, *[1] * (x.dim() - 2))
    return rescale(x, Multiplier(*(part.view(shape) for part in multiplier)))


def _refuse_raw_shortcuts(nodes: list[Node]) -> None:
    """ConfigError where something reads a tensor before its quantizer."""
    quantized = {node["inputs"][0] for node in nodes if node["op"] == "quantize"}
    for node in nodes:
        if node["op"] == "add" and quantized & set(node["inputs"]):
            raise ConfigError(
                f"{node['name']} adds a tensor before its quantizer, as quant.residual=fp trains it: that sum has no "
                f"integers; train with quant.residual=int."
            )


def _prepare(node: Node, inputs: list[Scaled | None], net: IntegerNet) -> tuple[dict[str, Any], Scaled]:
    """A node's integer constants and what is known of its output."""
    stored = net.deployed.stored
    if node["op"] == "quantize":
        return _prepare_quantizer(node, inputs[0], stored)
    known = [given for given in inputs if given is not None]
    if len(known) < len(inputs):
        why = "activations are not quantized" if "weight" in node else "shortcuts read them with quant.residual=fp"
        fix = "quantize them" if "weight" in node else "train with quant.residual=int"
        raise ConfigError(f"The layer {node['name']} reads floating-point numbers, since {why}: {fix}.")
    if "weight" in node:
        return _prepare_layer(node, known, net)
    given = known[0]
    if node["op"] == "add":
        return _prepare_sum(known, net.next_step(node["name"]))
    if node["op"] == "pixel_shuffle":
        return _prepare_shuffle(given, net.next_step(node["name"]))
    if node["op"] == "global_average_pool":
        left = int((INT32_MAX / given.bound.max()).log2().floor())
        return {"left": left}, Scaled(given.scale * 2.0**-left, given.bound * 2.0**left)
    return _limits(node["op"], given.scale), Scaled(given.scale, given.bound, given.codes)


def _limits(op: str, scale: Tensor) -> dict[str, Any]:
    """The integers at which ReLU6 and hard tanh cut."""
    top = {"relu6": 6.0, "hardtanh": 1.0}.get(op)
    return {} if top is None else {"limit": (top / scale).round().clamp(max=INT32_MAX).to(torch.int32)}


def _prepare_quantizer(node: Node, given: Scaled | None, stored: Mapping[str, Tensor]) -> tuple[dict[str, Any], Scaled]:
    step = stored[node["step"]].double().view(1)
    zero_point = int(stored[node["zero_point"]]) if node["zero_point"] else 0
    largest = max(abs(node["low"] - zero_point), abs(node["high"] - zero_point))
    out = Scaled(step, torch.tensor([float(largest)], dtype=torch.float64), codes=True)
    constants: dict[str, Any] = {"zero_point": zero_point}
    if given is not None and not node["by_sign"]:
        constants["multiplier"] = quantize_multiplier(given.scale / step)
    return constants, out


def _prepare_layer(node: Node, known: list[Scaled], net: IntegerNet) -> tuple[dict[str, Any], Scaled]:
    """Integer weights and biases; the sums' scale is the product of the steps (and of a batch norm's multiplier)."""
    name, stored, given = node["name"], net.deployed.stored, known[0]
    if len(known) > 1:
        raise ConfigError(
            f"The layer {name} multiplies by XNOR-Net's K, a floating-point map: quant.input_scale=false."
        )
    if node["bits"] == 32:
        raise ConfigError(f"The layer {name} has float weights: there are no integers for them (quant.first_last=8).")
    if not given.codes:
        raise ConfigError(f"The layer {name} reads floating-point numbers: quantize activations for integers.")
    weight = net.deployed.codes(node).long()
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
    if node["bias_step"]:
        bias = bias * stored[node["bias_step"]].double()
    if node["multiplier"]:
        weight, scale = _room_for_bias(weight, scale, bias)
    bound = weight.abs().flatten(1).sum(1) * given.bound + (bias / scale).abs() + 1
    if slope is not None:
        bound = bound * slope.abs().clamp(min=1)
    _check(node, bound)
    left = (INT32_MAX / bound).log2().floor().long()
    scale, bound = scale * 2.0 ** -left.double(), bound * 2.0 ** left.double()
    constants: dict[str, Any] = {
        "weight": weight.to(torch.int32),
        "left": left.to(torch.int32),
        "bias": (bias / scale).round().to(torch.int32) if node["bias"] else None,
        "pad": round(node["pad_value"] / given.scale.item()) if node.get("pad_value") else 0,
        "slope": None if slope is None else quantize_multiplier(slope),
        **_limits(node.get("activation", "none"), scale),
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


def _prepare_sum(known: list[Scaled], step: float | None) -> tuple[dict[str, Any], Scaled]:
    bound = sum((given.scale * given.bound).max().item() for given in known)
    scale = torch.tensor([_fine_scale(bound, step)], dtype=torch.float64)
    multipliers = [quantize_multiplier(given.scale / scale) for given in known]
    largest = (torch.tensor([bound], dtype=torch.float64) / scale).clamp(max=2 * ADDEND_MAX)
    return {"multipliers": multipliers}, Scaled(scale, largest)


def _prepare_shuffle(given: Scaled, step: float | None) -> tuple[dict[str, Any], Scaled]:
    """Channels become pixels, and so have to have one scale."""
    bound = (given.scale * given.bound).max()
    scale = torch.tensor([_fine_scale(bound.item(), step)], dtype=torch.float64)
    largest = (bound.view(1) / scale).clamp(max=ADDEND_MAX)
    return {"multiplier": quantize_multiplier(given.scale / scale)}, Scaled(scale, largest)


def _fine_scale(bound: float, step: float | None) -> float:
    """The finest that half of int32's range allows; ``FRACTION_BITS`` below the next step where that is finer still.

    Only in the second case can sums saturate, far behind that step's last code.
    """
    return bound / 2**30 if step is None else min(bound / 2**30, step * 2.0**-FRACTION_BITS)


def _check(node: Node, bound: Tensor) -> None:
    """CheckError if an int32 of this node could overflow."""
    largest = bound.max().item()
    if not largest <= INT32_MAX:
        raise CheckError(
            f"The layer {node['name']} could reach integers of {largest:.3g}, more than int32's {INT32_MAX}: "
            f"use fewer bits, or a larger step of its inputs."
        )
