"""Proof that the deployed network is the trained one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from repq_cli.answers import tensors
from repq_cli.deploy.integer import IntegerNet
from repq_cli.deploy.network import DeployedNet
from repq_cli.quant.frozen_layers import frozen_layers
from repq_cli.quant.quantizer import quantizers
from repq_cli.quant.wiring import node_name


class Agreement(NamedTuple):
    """Largest differences between two networks over all images.

    max_lsb: of the codes of any activation tensor, in steps; None if no activation is quantized.
    max_abs: of the outputs. answers: share of equal answers (classes, pixels), in percent.
    images: how many there were; others: how many of them have another answer, or other pixels.
    """

    max_lsb: float | None
    max_abs: float
    answers: float
    images: int
    others: int


@torch.no_grad()
def compare(
    net: nn.Module, deployed: DeployedNet, batches: Iterable[Tensor], agreement: Callable[[Tensor, Tensor], Tensor]
) -> Agreement:
    """Run both on every batch: the quantization-aware net in eval mode, the deployed one as it was read from disk."""
    seen: dict[str, Tensor] = {}

    def remember(name: str) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
        return lambda module, inputs, output: seen.__setitem__(name, output)

    by_node = {node_name(name): quantizer for name, quantizer in quantizers(net).items()}
    hooks = [quantizer.register_forward_hook(remember(name)) for name, quantizer in by_node.items()]
    was_training = net.training
    net.eval()
    lsb: list[Tensor] = []
    differences: list[Tensor] = []
    same: list[Tensor] = []
    try:
        with frozen_layers(net):
            for x in batches:
                expected = net(x)
                values = deployed.run(x)
                outputs = deployed.answer(values)
                lsb += [
                    (deployed.value(name, values) - tensor).abs().max() / by_node[name].grid(tensor).step
                    for name, tensor in seen.items()
                ]
                differences.append(largest_difference(outputs, expected))
                same.append(agreeing(outputs, expected, agreement))
    finally:
        for hook in hooks:
            hook.remove()
        net.train(was_training)
    return _summary(lsb, differences, same)


@torch.no_grad()
def compare_integers(
    deployed: DeployedNet,
    integers: IntegerNet,
    batches: Iterable[Tensor],
    agreement: Callable[[Tensor, Tensor], Tensor],
) -> Agreement:
    """Integers against the floating-point executor of the same files, on the CPU.

    ``max_lsb`` is of layers that are given the reference's codes, each for itself; ``max_abs`` and ``answers`` are end
    to end.
    """
    lsb: list[Tensor] = []
    differences: list[Tensor] = []
    same: list[Tensor] = []
    for x in batches:
        reference = deployed.run(x)
        own = integers.run(x, reference)
        for node in deployed.nodes:
            if node["op"] == "quantize":
                spacing = 2 if node["by_sign"] else 1  # from code to code
                lsb.append((own[node["name"]] - reference[node["name"]]).abs().max() / spacing)
        expected, outputs = deployed.answer(reference), integers(x)
        differences.append(largest_difference(outputs, expected))
        same.append(agreeing(outputs, expected, agreement))
    return _summary(lsb, differences, same)


def largest_difference(outputs: Any, expected: Any) -> Tensor:
    """The largest difference of all that two networks give."""
    pairs = zip(tensors(outputs), tensors(expected), strict=True)
    return torch.stack([(output - other).abs().max() for output, other in pairs]).max()


def agreeing(outputs: Any, expected: Any, agreement: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """How far answers agree: of several tensors as far as the least of them does."""
    pairs = zip(tensors(outputs), tensors(expected), strict=True)
    return torch.stack([agreement(output, other) for output, other in pairs]).amin(0)


def _summary(lsb: list[Tensor], differences: list[Tensor], same: list[Tensor]) -> Agreement:
    # The maximum of a tensor is NaN if one of its values is; Python's own would pass over it.
    max_lsb = torch.stack(lsb).max().item() if lsb else None
    shares = torch.cat(same)
    max_abs, others = torch.stack(differences).max().item(), int((shares < 100).sum())
    return Agreement(max_lsb, max_abs, shares.mean().item(), len(shares), others)
