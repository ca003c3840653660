"""From a quantization-aware network to the deployed one."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from repq_cli.deploy.network import FORMAT, FORMAT_WITHOUT_IDENTITY, DeployedNet, Node
from repq_cli.deploy.packing import pack
from repq_cli.errors import ConfigError
from repq_cli.quant.layers import QuantConv, QuantLayer, QuantLinear
from repq_cli.quant.quantizer import NoQuantizer, Quantizer
from repq_cli.quant.split import SplitLSQ
from repq_cli.quant.wiring import traced

SIMPLE_OPS: dict[type[nn.Module], str] = {
    nn.AdaptiveAvgPool2d: "global_average_pool",
    nn.Flatten: "flatten",
    nn.MaxPool2d: "max_pool",
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.Hardtanh: "hardtanh",
    nn.PixelShuffle: "pixel_shuffle",
    nn.Upsample: "nearest_upsample",
}
ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.Hardtanh: "hardtanh",
    nn.PReLU: "prelu",
    nn.Identity: "none",
}


@torch.no_grad()
def freeze(net: nn.Module, description: dict[str, Any]) -> DeployedNet:
    """The integer network of ``net`` in eval mode; ``description`` (input shape, classes, …) is stored beside it.

    Raises ConfigError for a description without ``input_shape``, ``[C, H, W]``, which all that reads the files needs.
    """
    if "input_shape" not in description:
        raise ConfigError("A frozen network is described by at least input_shape=[channels, rows, columns]: give it.")
    was_training = net.training
    net.eval()
    stored: dict[str, Tensor] = {}
    nodes: list[Node] = []
    aliases: dict[str, str] = {}  # of modules that do nothing, and so become no node
    for step in traced(net).nodes:
        arguments = step.args if step.op == "call_function" or _reads_raw(net, step) else step.args[:1]
        inputs = [aliases.get(arg.name, arg.name) for arg in arguments if isinstance(arg, fx.Node)]
        if step.op == "placeholder":
            source = step.name
        elif step.op == "output":
            output = inputs[0]
        elif step.op == "call_module" and isinstance(net.get_submodule(str(step.target)), NoQuantizer | nn.Identity):
            aliases[step.name] = inputs[0]
        elif step.op == "call_function" and step.target is operator.add and len(inputs) == 2:
            nodes.append({"name": step.name, "inputs": inputs, "op": "add"})
        elif step.op == "call_module":
            path = str(step.target)
            nodes.append({"name": step.name, "inputs": inputs, **operation(path, net.get_submodule(path), stored)})
        else:
            raise ValueError(f"The network's forward calls {step.target}, which has no deployed form: use a module.")
    net.train(was_training)
    number = FORMAT if any(node.get("identity") for node in nodes) else FORMAT_WITHOUT_IDENTITY
    graph = {"format": number, **description, "input": source, "output": output, "nodes": nodes}
    # Copies: training that goes on must not reach what is frozen.
    return DeployedNet(
        graph, {name: tensor.detach().cpu().clone().contiguous() for name, tensor in stored.items()}
    ).eval()


def operation(path: str, module: nn.Module, stored: dict[str, Tensor]) -> Node:
    """The node of one module; its tensors go into ``stored`` under the module's path."""

    def store(key: str, tensor: Tensor | None) -> str | None:
        if tensor is None:
            return None
        stored[f"{path}.{key}"] = tensor
        return f"{path}.{key}"

    if isinstance(module, QuantLayer):
        frozen = module.freeze()
        quantizer = module.quantizer
        node: Node = {"op": "linear" if isinstance(module, QuantLinear) else "conv", "bits": quantizer.bits}
        node["shape"] = list(frozen.weight.shape)
        if frozen.grid is None:
            node["weight"] = store("weight", frozen.weight)
        else:
            node |= _codes(quantizer)
            codes = frozen.weight.cpu()
            if isinstance(quantizer, SplitLSQ):
                node["identity"] = store("identity_codes", codes[quantizer.split.cpu()].to(torch.int8))
                codes = codes.masked_fill(quantizer.split.cpu(), 0)
            node["weight"] = store("codes", pack(codes, quantizer.bits, node["low"]))
            node["weight_step"] = store("weight_step", frozen.grid.step)
            node["weight_zero_point"] = store("weight_zero_point", frozen.grid.zero_point)
        bias = frozen.bias
        node["bias"] = store("bias", bias if bias is None or frozen.bias_step is None else bias.to(torch.int32))
        node["bias_step"] = store("bias_step", frozen.bias_step)
        node["multiplier"] = store("multiplier", frozen.multiplier)
        if isinstance(module, QuantConv):
            node |= {"stride": module.stride, "padding": module.padding, "groups": module.groups}
            node |= {"pad_value": module.pad_value, "input_scale": module.input_scale}
            node["activation"] = _known(ACTIVATIONS, path, module.activation)
            if isinstance(module.activation, nn.PReLU):
                node["slope"] = store("slope", module.activation.weight)
        return node
    if isinstance(module, Quantizer):
        grid = module.grid(torch.zeros(()))
        node = {"op": "quantize", "bits": module.bits, **_codes(module)}
        return node | {"step": store("step", grid.step), "zero_point": store("zero_point", grid.zero_point)}
    if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size not in (1, (1, 1)):
        raise ValueError(f"The layer {path} pools to {module.output_size}; only global pooling has a deployed form.")
    if isinstance(module, nn.MaxPool2d):
        return {"op": "max_pool", "size": module.kernel_size, "stride": module.stride, "padding": module.padding}
    if isinstance(module, nn.PixelShuffle):
        return {"op": "pixel_shuffle", "scale": module.upscale_factor}
    if isinstance(module, nn.Upsample):
        if module.mode != "nearest":
            raise ValueError(f"The layer {path} interpolates by {module.mode}; only nearest has a deployed form.")
        return {"op": "nearest_upsample", "scale": int(module.scale_factor)}  # type: ignore[arg-type]
    return {"op": _known(SIMPLE_OPS, path, module)}


def _codes(quantizer: Quantizer) -> Node:
    """Which integers are codes, and whether they are given by sign or by rounding."""
    return {"low": quantizer.codes.low, "high": quantizer.codes.high, "by_sign": quantizer.by_sign}


def _reads_raw(net: nn.Module, step: fx.Node) -> bool:
    """Whether a layer needs, beside its codes, its input before quantization, with which it is always called."""
    module = net.get_submodule(str(step.target)) if step.op == "call_module" else None
    return isinstance(module, QuantConv) and module.input_scale


def _known(names: dict[type[nn.Module], str], path: str, module: nn.Module) -> str:
    """The deployed name of a module's kind; ValueError where it has none."""
    if type(module) not in names:
        legal = ", ".join(kind.__name__ for kind in names)
        raise ValueError(f"The {type(module).__name__} of layer {path} has no deployed form; these have: {legal}.")
    return names[type(module)]
