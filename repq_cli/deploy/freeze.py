"""From a quantization-aware network to the deployed one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from repq_cli.deploy.network import DeployedNet
from repq_cli.deploy.operations import OPERATIONS
from repq_cli.deploy.tracing import Conversion, Refusal, together
from repq_cli.errors import ConfigError
from repq_cli.quant.wiring import traced


@torch.no_grad()
def freeze(net: nn.Module, description: dict[str, Any]) -> DeployedNet:
    """The integer network of ``net`` in eval mode; ``description`` (input shape, classes, …) is stored beside it.

    Raises ConfigError for a description without ``input_shape``, ``[C, H, W]``, which all that reads the files needs,
    and ValueError with all that has no deployed form.
    """
    if "input_shape" not in description:
        raise ConfigError("A frozen network is described by at least input_shape=[channels, rows, columns]: give it.")
    found = converted(net, description["input_shape"])
    if found.refusals:
        raise ValueError(together([refusal.reason for refusal in found.refusals]))
    number = max(OPERATIONS[node["op"]].format(node) for node in found.nodes)
    graph = {"format": number, **description, "input": found.source, "output": found.output, "nodes": found.nodes}
    # Copies: training that goes on must not reach what is frozen.
    stored = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in found.stored.items()}
    return DeployedNet(graph, stored).eval()


def converted(
    net: nn.Module, input_shape: Sequence[int] | None = None, known: tuple[type[nn.Module], ...] = ()
) -> Conversion:
    """What becomes of every step of ``net`` in eval mode, which is traced if it is no ``fx.GraphModule``.

    input_shape  of an image, ``[C, H, W]``: where it is not given, steps that ask for sizes are refused
    known        modules that are taken for what they are, since something will be made of them later
    """
    modes = {part: part.training for part in net.modules()}
    net.eval()
    try:
        return Conversion(net, net.graph if isinstance(net, fx.GraphModule) else traced(net), input_shape, known)
    finally:
        for part, mode in modes.items():
            part.training = mode


@torch.no_grad()
def unsupported(
    net: nn.Module, input_shape: Sequence[int] | None = None, known: tuple[type[nn.Module], ...] = ()
) -> list[Refusal]:
    """All steps of a network that have no deployed form, in order, each with its reason; arguments: ``converted``'s.

    What is not refused here is not refused by ``freeze``.
    """
    return converted(net, input_shape, known).refusals
