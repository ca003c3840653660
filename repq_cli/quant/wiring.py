"""Which quantizer feeds which layer, found by tracing the network's forward."""

from __future__ import annotations

from typing import TypeGuard

from torch import fx, nn

from repq_cli.errors import ConfigError
from repq_cli.quant.float_leaf import FloatLeaf
from repq_cli.quant.layers import QuantLayer
from repq_cli.quant.quantizer import Quantizer


class QuantTracer(fx.Tracer):
    """Stops at quantized layers and quantizers, and at every one of torch's own layers."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether ``m`` is one operation of the graph."""
        return isinstance(m, (QuantLayer, Quantizer, FloatLeaf)) or super().is_leaf_module(m, module_qualified_name)


def traced(net: nn.Module) -> fx.Graph:
    """The operations of the network's forward, in order. Raises ConfigError where it cannot be followed."""
    try:
        return QuantTracer().trace(net)
    except Exception as error:  # whatever a forward pass does with a stand-in for a tensor
        raise ConfigError(
            f"The forward pass of {type(net).__name__} cannot be followed ({error}): it may depend on the values of "
            f"tensors; take that part out of the network."
        ) from error


def node_name(path: str) -> str:
    """What a trace calls the call of a module.

    >>> node_name("stages.0.conv"), node_name("0.conv")
    ('stages_0_conv', '_0_conv')
    """
    name = path.replace(".", "_")
    return f"_{name}" if name[:1].isdigit() else name


def input_quantizers(net: nn.Module) -> dict[str, str]:
    """By quantized layer the quantizer whose codes it reads, where there is one that does quantize."""
    return {name: source for name, source in inputs(net).items() if _quantizes(net.get_submodule(source))}


def inputs(net: nn.Module) -> dict[str, str]:
    """By quantized layer the quantizer in front of it, also one that does nothing, where there is one."""
    found = {}
    for node in traced(net).nodes:
        source = node.args[0] if isinstance(_module(net, node), QuantLayer) else None
        if isinstance(source, fx.Node) and isinstance(_module(net, source), Quantizer):
            found[str(node.target)] = str(source.target)
    return found


def link(net: nn.Module) -> None:
    """Tell every quantized layer whose codes it reads, if any, and whether signs are taken of what it gives."""
    reaches_signs: set[fx.Node] = set()  # before any other quantizer or layer
    for node in reversed(traced(net).nodes):
        module = _module(net, node)
        followed = any(user in reaches_signs for user in node.users)
        if isinstance(module, QuantLayer):
            source = _module(net, node.args[0])
            module.link(source if _quantizes(source) else None, followed)
        elif module.by_sign if _quantizes(module) else followed:
            reaches_signs.add(node)


def _module(net: nn.Module, node: object) -> nn.Module | None:
    if not isinstance(node, fx.Node) or node.op != "call_module":
        return None
    return net.get_submodule(str(node.target))


def _quantizes(module: nn.Module | None) -> TypeGuard[Quantizer]:
    return isinstance(module, Quantizer) and module.bits < 32
