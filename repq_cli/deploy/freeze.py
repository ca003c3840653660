"""From a quantization-aware network to the deployed one."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from repq_cli.deploy.network import DeployedNet
from repq_cli.deploy.operations import OPERATIONS
from repq_cli.deploy.tracing import Conversion
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
    was_training = net.training
    net.eval()
    found = Conversion(net, traced(net), description["input_shape"])
    net.train(was_training)
    if found.refusals:
        raise ValueError(" ".join(refusal.reason for refusal in found.refusals))
    number = max(OPERATIONS[node["op"]].format(node) for node in found.nodes)
    graph = {"format": number, **description, "input": found.source, "output": found.output, "nodes": found.nodes}
    # Copies: training that goes on must not reach what is frozen.
    stored = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in found.stored.items()}
    return DeployedNet(graph, stored).eval()
