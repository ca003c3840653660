"""A quantization-aware network with only some of its quantizers at work."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from repq_cli.quant.layers import QuantLayer, quant_layers
from repq_cli.quant.post_norm import PostNorm1d, PostNorm2d
from repq_cli.quant.quantizer import NoQuantizer, quantizers
from repq_cli.quant.wiring import link


@contextmanager
def quantizing_only(net: nn.Module, kept: Collection[str], batch: Tensor) -> Iterator[None]:
    """Inside, ``net``, in eval mode, quantizes only where ``kept`` names its quantizers; all others pass tensors on.

    A batch norm that QAT has added follows the codes' mean and variance: where some are missing, it gets those that
    ``batch`` has now, layer by layer, as in calibration. Afterwards the network is what it was.
    """
    off = {name: quantizer for name, quantizer in quantizers(net).items() if name not in kept}
    norms = {
        name: layer for name, layer in quant_layers(net).items() if isinstance(layer.norm, PostNorm1d | PostNorm2d)
    }
    states = {
        name: {key: value.clone() for key, value in layer.norm.state_dict().items()}
        for name, layer in norms.items()
        if layer.norm
    }
    for name in off:
        net.set_submodule(name, NoQuantizer())
    link(net)
    try:
        if off and norms:
            _follow(net, list(norms.values()), batch)
        yield
    finally:
        for name, quantizer in off.items():
            net.set_submodule(name, quantizer)
        for name, layer in norms.items():
            assert layer.norm is not None
            layer.norm.load_state_dict(states[name])
        link(net)


@torch.no_grad()
def _follow(net: nn.Module, layers: list[QuantLayer], batch: Tensor) -> None:
    """Set the statistics of added batch norms to those of the tensors that reach them."""

    def set_statistics(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, QuantLayer) and isinstance(layer.norm, PostNorm1d | PostNorm2d)
        y = layer.before_norm(inputs[0], inputs[-1])
        var, mean = torch.var_mean(y, dim=[0, *range(2, y.dim())], correction=0)
        layer.norm.set_statistics(mean, var)

    hooks = [layer.register_forward_pre_hook(set_statistics) for layer in layers]
    try:
        net(batch)
    finally:
        for hook in hooks:
            hook.remove()
