"""``repq info``: the network of a configuration layer by layer, as it trains and as it ships."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from torch import nn

from repq_cli import build
from repq_cli.answers import leaves
from repq_cli.config import Config
from repq_cli.data.base import Inputs
from repq_cli.deploy.cost import cost, layer_bytes, layer_costs, layer_parameters, parameter_count
from repq_cli.deploy.freeze import freeze
from repq_cli.deploy.network import DeployedNet
from repq_cli.deploy.operations.base import Node
from repq_cli.deploy.runs_as import floating, runs_as
from repq_cli.errors import ConfigError, DataError
from repq_cli.modes.compose import compose
from repq_cli.quant.layers import quantizers_in_layers
from repq_cli.quant.quantizer import Quantizer
from repq_cli.quant.wiring import node_name
from repq_cli.reparam.block import Block
from repq_cli.reparam.branch import SumBranch
from repq_cli.reparam.transposed import Transposed
from repq_cli.text import columns
from repq_cli.train.environment import environment

Line = tuple[str, ...]
HEADER: Line = (
    "layer", "block", "branches", "kernel", "stride", "weights", "input", "runs as",
    "in training", "deployed", "MMACs", "GBOPs", "bytes",
)  # fmt: skip
WORDS = 8  # columns of text; the others are numbers


def info_job(tree: dict[str, Any]) -> None:
    """Print the network that trains, the network that ships, and the environment."""
    config = build.checked(tree)
    inputs = _inputs(config)
    mode, quant = config.mode, config.quant
    net = build.network_maker(config, inputs)()
    quantized = compose(net, mode, quant)
    try:
        deployed = freeze(mode.rule.shipped_net(quantized, "lsq"), {"input_shape": list(inputs.shape)})
    except ValueError as error:
        raise ConfigError(str(error)) from error

    print(f"{config.model.name}, rep {config.rep.name}, mode {mode.name}, {quant.label}")
    asked = " (input_shape)" if config.input_shape else ""
    print(f"{inputs.name}: {'x'.join(map(str, inputs.shape))}{asked}, {_answers(config, inputs, deployed)}\n")
    print(columns([HEADER, *_layers(net, deployed), _total(net, deployed)], WORDS))
    for line in floating(runs_as(deployed)):
        print(line)
    print("\nactivation tensors")
    for width, tensors in itertools.groupby(_activations(quantized), key=lambda tensor: tensor[1]):
        names = [name for name, _ in tensors]
        print(f"  {names[0] if len(names) == 1 else f'{names[0]} to {names[-1]}'}: {width}")
    macs, bops = cost(deployed)
    print(f"\nparameters in training  {_count(net):>16,}")
    print(f"parameters deployed     {parameter_count(deployed):>16,}")
    print(f"multiply-accumulates    {macs:>16,}  for one image")
    print(f"bit operations          {bops:>16,}  MACs x weight bits x input bits\n")
    for key, value in environment().items():
        if value:
            print(f"{key:<10} {_flat(value)}")


def _answers(config: Config, inputs: Inputs, deployed: DeployedNet) -> str:
    """What comes out, in words."""
    if config.task == "features":
        sizes = deployed.sizes()
        return f"gives {', '.join('x'.join(map(str, sizes[name][1:])) for name in leaves(deployed.graph['output']))}"
    scale = config.model.scale
    if scale is not None:
        rows, columns = (size * scale for size in inputs.shape[1:])
        return f"enlarged x{scale} to {rows}x{columns}"
    return f"{config.model.num_classes or inputs.num_classes} classes"


def _inputs(config: Config) -> Inputs:
    """What the network is built for: the data's shape and classes, the shape unless ``input_shape`` names another."""
    try:
        inputs = build.data_inputs(config)
    except DataError as error:
        raise DataError(f"{error} (The network's input and classes come from the data.)") from error
    return Inputs(inputs.name, config.input_shape or inputs.shape, inputs.num_classes)


def _layers(net: nn.Module, deployed: DeployedNet) -> Iterator[Line]:
    costs, ways = layer_costs(deployed), runs_as(deployed)
    layers = {node_name(name): (name, module) for name, module in net.named_modules()}
    for node in deployed.nodes:
        if "weight" in node:
            name, layer = layers[node["name"]]
            layer_cost = costs[node["name"]]
            block = layer if isinstance(layer, Block) else None
            yield (
                name,
                layer.kind if isinstance(layer, Block | Transposed) else "linear",
                _branches(block.branches) if block else "",
                "x".join(map(str, node["shape"])),
                str(node.get("stride", "")),
                _bits(layer_cost.weight_bits),
                _bits(layer_cost.act_bits),
                ways[node["name"]].partition(":")[0],
                f"{_count(layer):,}",
                f"{layer_parameters(deployed, node):,}",
                f"{layer_cost.macs / 1e6:.3f}",
                f"{layer_cost.bops / 1e9:.3f}",
                f"{layer_bytes(deployed, node):,}",
            )


def _total(net: nn.Module, deployed: DeployedNet) -> Line:
    nodes: list[Node] = [node for node in deployed.nodes if "weight" in node]
    macs, bops = cost(deployed)
    stored = sum(layer_bytes(deployed, node) for node in nodes)
    texts = ("total", *[""] * (WORDS - 1))
    return (
        *texts,
        f"{_count(net):,}",
        f"{parameter_count(deployed):,}",
        f"{macs / 1e6:.3f}",
        f"{bops / 1e9:.3f}",
        f"{stored:,}",
    )


def _branches(branches: nn.ModuleDict) -> str:
    """Names joined by plus signs; a sum under a batch norm of its own in brackets."""
    return "+".join(
        f"BN({_branches(branch.branches)})" if isinstance(branch, SumBranch) else name
        for name, branch in branches.items()
    )


def _activations(net: nn.Module) -> list[tuple[str, str]]:
    """Name and bits of every activation tensor that is quantized on its own."""
    in_layers = quantizers_in_layers(net)
    return [
        (name, f"{_bits(module.bits)}{'' if module.bits == 32 else ' signed' if module.signed else ' unsigned'}")
        for name, module in net.named_modules()
        if isinstance(module, Quantizer) and module not in in_layers
    ]


def _bits(bits: int) -> str:
    return "float" if bits == 32 else f"{bits} bit"


def _count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
