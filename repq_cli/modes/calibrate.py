"""What a quantization-aware network needs before its first step: steps, and statistics behind layers without scale."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from repq_cli.errors import CheckError
from repq_cli.modes.options import POST_BN_BITS
from repq_cli.quant.init import Initialiser
from repq_cli.quant.layers import QuantLayer, quant_layers, quantizers_in_layers
from repq_cli.quant.post_norm import PostNorm1d, PostNorm2d
from repq_cli.quant.quantizer import Quantizer, quantizers
from repq_cli.reparam.algebra import convolve
from repq_cli.reparam.block import Block
from repq_cli.reparam.statistics import RunningStatistics

Hook = Callable[[nn.Module, tuple[Tensor, ...]], None]


@torch.no_grad()
def calibrate(net: nn.Module, batch: Tensor, initialiser: Initialiser, reference: nn.Module | None = None) -> None:
    """Set every step: weights on their merged kernels, then activations layer by layer on ``batch`` in one forward.

    Each activation quantizer sees its input as the already quantized layers before it give it, in eval mode. New batch
    norms behind quantized layers are set the same way: mean and variance of what ``reference``, the network that
    ``net`` was composed of, has there become shift and squared scale, those of what the codes give the statistics.
    A batch norm that was there before gets new statistics too where codes have one or two bits.
    Raises CheckError, with the layer's name, for values that are not finite or that a quantizer has no codes for.
    """
    was_training = net.training
    net.eval()
    layers = quant_layers(net)
    for name, layer in layers.items():
        _require_finite(f"The merged weight of layer {name}", layer.merged_weight())
        layer.calibrate(initialiser)
    in_layers = quantizers_in_layers(net)
    hooks: dict[nn.Module, Hook] = {
        quantizer: _step_setter(name, initialiser)
        for name, quantizer in quantizers(net).items()
        if quantizer not in in_layers
    }
    added = {name: layer.norm for name, layer in layers.items() if isinstance(layer.norm, PostNorm1d | PostNorm2d)}
    _take_over_outputs(added, reference, batch)
    few = [layer for layer in layers.values() if layer.quantizer.bits <= POST_BN_BITS]
    hooks |= {layer: _set_statistics for layer in layers.values() if layer.norm in added.values() or layer in few}
    with _before_each(hooks):
        net(batch)
    net.train(was_training)


def _step_setter(name: str, initialiser: Initialiser) -> Hook:
    def set_steps(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, Quantizer)
        values = inputs[0]
        _require_finite(f"The activation tensor {name}", values)
        lowest = values.min().item()
        if lowest < 0 and not module.signed:
            raise CheckError(
                f"The activation tensor {name} goes down to {lowest:g}, and its quantizer is unsigned and would clip "
                f"that to 0: have the model declare it as Tap(signed=True), or use quant.act_method=lsqplus or affine."
            )
        module.calibrate(values, initialiser)

    return set_steps


def _require_finite(what: str, values: Tensor) -> None:
    if not torch.isfinite(values).all():
        raise CheckError(
            f"{what} holds NaN or infinity, on which no step can be set: if the data are finite, train FP with a lower "
            f"learning rate or optim.clip_norm, or choose another fp.checkpoint."
        )


def _set_statistics(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """The running statistics of the batch norm behind a layer, if any, from what its codes give for this input."""
    assert isinstance(module, QuantLayer)
    norm = module.norm
    if norm is None:
        return
    mean, var = _moments(module.before_norm(inputs[0], inputs[-1]))
    if isinstance(norm, PostNorm1d | PostNorm2d):
        norm.set_statistics(mean, var)
    else:
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(var)


def _take_over_outputs(norms: dict[str, PostNorm1d | PostNorm2d], reference: nn.Module | None, batch: Tensor) -> None:
    """Scales and shifts of added batch norms, from the reference's outputs before activation."""
    if not norms:
        return
    if reference is None:
        raise ValueError(
            f"The layers {', '.join(norms)} have new batch norms: calibrate wants the network composed of."
        )

    def take_over(norm: PostNorm1d | PostNorm2d) -> Hook:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if isinstance(module, Block):
                weight, bias = module.merged(RunningStatistics())
                y = convolve(inputs[0], weight, module.geometry, bias)
            else:
                assert isinstance(module, nn.Linear)
                y = nn.functional.linear(inputs[0], module.weight, module.bias)
            norm.take_over(*_moments(y))

        return hook

    was_training = reference.training
    reference.eval()
    with _before_each({reference.get_submodule(name): take_over(norm) for name, norm in norms.items()}):
        reference(batch)
    reference.train(was_training)


def _moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel."""
    var, mean = torch.var_mean(y, dim=[0, *range(2, y.dim())], correction=0)
    return mean, var


@contextmanager
def _before_each(hooks: dict[nn.Module, Hook]) -> Iterator[None]:
    handles = [module.register_forward_pre_hook(hook) for module, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
