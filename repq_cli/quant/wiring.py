"""Which quantizer feeds which layer, found by tracing the network's forward."""

from __future__ import annotations

from torch import fx, nn

from repq_cli.quant.layers import QuantLayer
from repq_cli.quant.quantizer import Quantizer


class QuantTracer(fx.Tracer):
    """Stops at quantized layers and quantizers, and at every one of torch's own layers."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether ``m`` is one operation of the graph."""
        return isinstance(m, (QuantLayer, Quantizer)) or super().is_leaf_module(m, module_qualified_name)


def input_quantizers(net: nn.Module) -> dict[str, str]:
    """By quantized layer the quantizer whose codes it reads, where there is one that does quantize."""
    found = {}
    for node in QuantTracer().trace(net).nodes:
        if node.op != "call_module" or not isinstance(node.args[0], fx.Node) or node.args[0].op != "call_module":
            continue
        layer, source = net.get_submodule(str(node.target)), net.get_submodule(str(node.args[0].target))
        if isinstance(layer, QuantLayer) and isinstance(source, Quantizer) and source.bits < 32:
            found[str(node.target)] = str(node.args[0].target)
    return found


def link_inputs(net: nn.Module) -> None:
    """Tell every quantized layer whose codes it reads: that its bias may be a multiple of the product of both steps."""
    for name, source in input_quantizers(net).items():
        layer, quantizer = net.get_submodule(name), net.get_submodule(source)
        assert isinstance(layer, QuantLayer) and isinstance(quantizer, Quantizer)
        layer.reads(quantizer)
