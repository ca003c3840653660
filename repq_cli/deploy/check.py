"""Proof that the deployed network is the trained one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from repq_cli.deploy.network import DeployedNet
from repq_cli.quant.quantizer import quantizers


class Agreement(NamedTuple):
    """Largest differences between two networks over all images.

    max_lsb: of the codes of any activation tensor, in steps; None if no activation is quantized.
    max_abs: of the outputs. answers: share of equal answers (classes, pixels), in percent.
    """

    max_lsb: float | None
    max_abs: float
    answers: float


@torch.no_grad()
def compare(
    net: nn.Module, deployed: DeployedNet, batches: Iterable[Tensor], agreement: Callable[[Tensor, Tensor], Tensor]
) -> Agreement:
    """Run both on every batch: the quantization-aware net in eval mode, the deployed one as it was read from disk."""
    seen: dict[str, Tensor] = {}

    def remember(name: str) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
        return lambda module, inputs, output: seen.__setitem__(name, output)

    by_node = {name.replace(".", "_"): quantizer for name, quantizer in quantizers(net).items()}
    hooks = [quantizer.register_forward_hook(remember(name)) for name, quantizer in by_node.items()]
    was_training = net.training
    net.eval()
    lsb: list[Tensor] = []
    differences: list[Tensor] = []
    same: list[Tensor] = []
    try:
        for x in batches:
            expected = net(x)
            values = deployed.run(x)
            outputs = values[deployed.graph["output"]]
            lsb += [
                (values[name] - tensor).abs().max() / by_node[name].grid(tensor).step for name, tensor in seen.items()
            ]
            differences.append((outputs - expected).abs().max())
            same.append(agreement(outputs, expected))
    finally:
        for hook in hooks:
            hook.remove()
        net.train(was_training)
    # The maximum of a tensor is NaN if one of its values is; Python's own would pass over it.
    max_lsb = torch.stack(lsb).max().item() if lsb else None
    return Agreement(max_lsb, torch.stack(differences).max().item(), torch.cat(same).mean().item())
