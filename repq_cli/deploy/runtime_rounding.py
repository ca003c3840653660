"""The integer executor with the rounding of ONNX Runtime's int8 kernels on x86, so that codes are those of its own.

Those multiply an int32 in float32 and round to nearest, halves to even; how the factor is formed is a kernel's own:

    layers          sum * (s_x * s_w / s_y)
    sums (QLinearAdd)  a * (s_a / s_y) + (b * (s_b / s_y) + c),  c = z_y - (z_a * s_a / s_y + z_b * s_b / s_y),
                    of codes as they are stored, each product and sum rounded once
    mean pools      sum * (s_x / (s_y * pixels))

Where nothing of that kind stands before a quantizer, numbers are divided by its step. Runtimes on other processors, and
their layers in floating point, follow other rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from repq_cli.answers import leaves
from repq_cli.deploy.fixed_point import per_channel
from repq_cli.deploy.integer import IntegerNet
from repq_cli.deploy.network import DeployedNet
from repq_cli.deploy.operations import OPERATIONS
from repq_cli.deploy.operations.base import Node
from repq_cli.deploy.runs_as import PASSING, floating, runs_as
from repq_cli.errors import ConfigError

POOL = "global_average_pool"
Kernel = Callable[[Mapping[str, Tensor]], Tensor]


class RuntimeNet(IntegerNet):
    """``IntegerNet`` whose quantizers round as ONNX Runtime's kernels.

    Raises ConfigError for a network with a layer that runs in floating point there, or with an operation before a
    quantizer whose rule is not known, and what ``IntegerNet`` raises.
    """

    def __init__(self, deployed: DeployedNet) -> None:
        for sentence in floating(runs_as(deployed)):
            raise ConfigError(f"rounding=onnxruntime follows kernels of int8, and {sentence}: leave rounding out.")
        super().__init__(deployed)
        self.by_name = {node["name"]: node for node in self.nodes}
        self.kernels: dict[str, Kernel] = {}
        for node in self.nodes:
            if node["op"] == "quantize" and self.known[node["inputs"][0]] is not None:
                self.kernels[node["name"]] = self._kernel(node)

    def computed(self, node: Node, values: Mapping[str, Tensor]) -> Tensor:
        """A node's integers, those of a quantizer by its kernel's rule."""
        kernel = self.kernels.get(node["name"])
        return super().computed(node, values) if kernel is None else kernel(values)

    def _kernel(self, node: Node) -> Kernel:
        """What a quantizer does with the values of all nodes before it."""
        maker, limits, moves = self._maker(node)
        step = self.deployed.stored[node["step"]].float().view(1)
        finished = partial(_codes, node, self.constants[node["name"]]["zero_point"], limits, step)
        source, alone = node["inputs"][0], self._readers(maker["name"]) == 1
        if "weight" in maker and alone:
            known = self.known[source]
            assert known is not None
            factor = known.scale.float() / step
            return lambda values: finished(values[source].float() * per_channel(factor, values[source]))
        if maker["op"] == "add" and set(maker["inputs"]) <= set(self.deployed.quantizers):
            zero = _stored_zero(node, self.constants[node["name"]]["zero_point"])
            codes = self._sum(maker, step, zero, finished) if alone else self._apart(maker, step, finished)
            return lambda values: self._moved(codes(values), moves)
        if maker["op"] == POOL and maker["inputs"][0] in self.deployed.quantizers and alone:
            (read,) = maker["inputs"]
            own = self._step(read)
            return lambda values: self._moved(finished(_pooled(values[read], own, step)), moves)
        if maker["op"] == "quantize":
            own = self._step(maker["name"])
            return lambda values: finished(values[source].float() * own / step)
        raise ConfigError(
            f"rounding=onnxruntime knows no rule for {maker['op']} ({maker['name']}) before the codes {node['name']}: "
            f"leave rounding out."
        )

    def _moved(self, codes: Tensor, moves: list[Node]) -> Tensor:
        """Codes of numbers that are moved before they are quantized, which is the same."""
        for node in moves:
            codes = OPERATIONS[node["op"]].integers(self, node, self.constants[node["name"]], codes)
        return codes

    def _maker(self, node: Node) -> tuple[Node, tuple[float, float], list[Node]]:
        """What makes the numbers of a quantizer, the limits of activation functions in between, and what moves them."""
        low, high, moves = -torch.inf, torch.inf, list[Node]()
        while True:
            node = self.by_name[node["inputs"][0]]
            ends = OPERATIONS[node["op"]].limits(node)
            if ends is not None:
                low, high = max(low, ends[0]), min(high, ends[1])
            if "weight" in node or (ends is None and node["op"] not in PASSING):
                return node, (low, high), moves[::-1]
            if node["op"] in PASSING:
                moves.append(node)

    def _readers(self, name: str) -> int:
        """How many nodes, and answers, read one's output."""
        of_answers = list(leaves(self.graph["output"])).count(name)
        return sum(name in node["inputs"] for node in self.nodes) + of_answers

    def _step(self, name: str) -> Tensor:
        return self.deployed.stored[self.deployed.quantizers[name]["step"]].float().view(1)

    def _sum(self, node: Node, step: Tensor, zero: int, finished: Callable[[Tensor], Tensor]) -> Kernel:
        """One kernel of codes as they are stored."""
        names = first, second = node["inputs"]
        ratios = [self._step(name) / step for name in names]
        zeros = [_stored_zero(self.deployed.quantizers[name], self.constants[name]["zero_point"]) for name in names]
        behind = zero - _fused(ratios[0], torch.tensor(float(zeros[0])), ratios[1] * zeros[1])

        def kernel(values: Mapping[str, Tensor]) -> Tensor:
            a, b = (values[name].float() + zero for name, zero in zip((first, second), zeros, strict=True))
            return finished(_fused(a, ratios[0], _fused(b, ratios[1], behind)).round() - zero)

        return kernel

    def _apart(self, node: Node, step: Tensor, finished: Callable[[Tensor], Tensor]) -> Kernel:
        """Where several read a sum, it is one of numbers."""
        steps = {name: self._step(name) for name in node["inputs"]}
        first, second = node["inputs"]
        return lambda values: finished(
            (values[first].float() * steps[first] + values[second].float() * steps[second]) / step
        )


def _codes(node: Node, zero_point: int, limits: tuple[float, float], step: Tensor, quotient: Tensor) -> Tensor:
    """Codes, counted from zero, of numbers in steps; limits: of the numbers, which as codes are limits as well."""
    low, high = (float((torch.tensor(limit) / step).round()) for limit in limits)
    least, most = max(node["low"] - zero_point, low), min(node["high"] - zero_point, high)
    return quotient.round().clamp(least, most).to(torch.int32)


def _fused(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """``a b + c``, rounded to float32 once, as the processor's one instruction for it does."""
    return (a.double() * b.double() + c.double()).float()


def _pooled(x: Tensor, own: Tensor, step: Tensor) -> Tensor:
    pixels = x.shape[2] * x.shape[3]
    return x.sum((2, 3), keepdim=True).float() * (own / (step * pixels))


def _stored_zero(quantizer: Node, zero_point: int) -> int:
    """The code of zero in the file: uint8, signed codes moved by 128."""
    return zero_point + (0 if quantizer["low"] >= 0 else 128)
