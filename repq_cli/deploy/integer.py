"""The deployed network in integers alone: codes in, int32 sums, fixed-point multipliers, codes out.

Between the first and the last code there is no floating-point number (arXiv 1712.05877, section 2.2). Every tensor is
integers with a scale: codes without their zero-point with the quantizer's step, sums with one scale per channel. How a
sum becomes codes is decided once, when the network is made; so is whether an int32 could overflow.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repq_cli.deploy.fixed_point import INT32_MAX, Multiplier, rescale
from repq_cli.deploy.integer_scales import Scaled, prepare, refuse_raw_shortcuts
from repq_cli.deploy.network import DeployedNet, Node


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
        refuse_raw_shortcuts(self.nodes)
        known: dict[str, Scaled | None] = {self.graph["input"]: None}  # None: still floating point
        for node in self.nodes:
            constants, out = prepare(node, [known[name] for name in node["inputs"]], deployed, self.next_steps)
            self.constants[node["name"]] = constants
            known[node["name"]] = out
        self.known = known

    def next_steps(self, name: str) -> list[float]:
        """The steps of the quantizers that a node's output reaches; none for an answer, or where only signs matter."""
        found: list[float] = []
        for node in self.nodes:
            if name in node["inputs"] and node["op"] == "quantize":
                found += [] if node["by_sign"] else [float(self.deployed.stored[node["step"]])]
            elif name in node["inputs"]:
                found += self.next_steps(node["name"])
        return found

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

        With the ``reference`` outputs of the floating-point executor each layer is given the reference's codes, so that
        differences do not add up: those between the results and the reference are one layer's own.
        """
        values, fed = {self.graph["input"]: x}, {self.graph["input"]: x}
        for node in self.nodes:
            name = node["name"]
            inputs = [fed[source] for source in node["inputs"]]
            values[name] = getattr(self, f"_{node['op']}")(node, self.constants[name], *inputs)
            fed[name] = values[name]
            if reference is not None and node["op"] == "quantize":
                fed[name] = reference[name].to(torch.int32)
        return values

    def _quantize(self, node: Node, constants: dict[str, Any], x: Tensor) -> Tensor:
        if x.is_floating_point():  # the image: the first codes
            return self.deployed._quantize(node, x).to(torch.int32)
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
        return _saturated(_rescaled(x, first) + _rescaled(y, second))

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
        slope: Multiplier = constants["slope"]
        below = _rescaled(x, slope).to(torch.int32)
        # What a positive slope rounds to zero stays negative, since signs may be taken of it.
        below = torch.where(slope.mantissa.view(-1, 1, 1) > 0, below.clamp(max=-1), below)
        return torch.where(x < 0, below, x)

    def _pixel_shuffle(self, node: Node, constants: dict[str, Any], x: Tensor) -> Tensor:
        return F.pixel_shuffle(_saturated(_rescaled(x, constants["multiplier"])), node["scale"])

    def _nearest_upsample(self, node: Node, constants: dict[str, Any], x: Tensor) -> Tensor:
        return x.repeat_interleave(node["scale"], 2).repeat_interleave(node["scale"], 3)

    def _flatten(self, node: Node, constants: dict[str, Any], x: Tensor) -> Tensor:
        return torch.flatten(x, 1)


def _saturated(x: Tensor) -> Tensor:
    """To int32, of 64 bits: addends may be larger than their sum may. What saturates is behind every next last code."""
    return x.clamp(-INT32_MAX, INT32_MAX).to(torch.int32)


def _with_bias(sums: Tensor, constants: dict[str, Any]) -> Tensor:
    """The sums of a layer, shifted to the left as far as an int32 allows, plus its bias, which is that much finer."""
    shape = (1, -1, *[1] * (sums.dim() - 2))
    y = sums << constants["left"].view(shape)
    return y if constants["bias"] is None else y + constants["bias"].view(shape)


def _rescaled(x: Tensor, multiplier: Multiplier) -> Tensor:
    """``rescale`` with one multiplier per channel, the second dimension."""
    shape = (1, -1, *[1] * (x.dim() - 2))
    return rescale(x, Multiplier(*(part.view(shape) for part in multiplier)))
