"""What a quantization-aware network needs before its first step: steps, and batch norms that fit the codes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from repq_cli.errors import CheckError
from repq_cli.modes.options import POST_BN_BITS
from repq_cli.quant.functional import SMALLEST_STEP
from repq_cli.quant.init import Initialiser
from repq_cli.quant.layers import QuantConv, QuantLayer, quant_layers, quantizers_in_layers
from repq_cli.quant.post_norm import PostNorm1d, PostNorm2d
from repq_cli.quant.quantizer import Quantizer, quantizers
from repq_cli.reparam.algebra import convolve
from repq_cli.reparam.block import Block
from repq_cli.reparam.statistics import RunningStatistics
from repq_cli.reparam.transposed import Transposed

AS_GOOD_AS_ZERO = 1e-20  # signs of weights in a layer of dead channels give no zero

Hook = Callable[[nn.Module, tuple[Tensor, ...]], None]


@torch.no_grad()
def calibrate(net: nn.Module, batch: Tensor, initialiser: Initialiser, reference: nn.Module | None = None) -> None:
    """Set every step: weights on their merged kernels, then activations layer by layer on ``batch`` in one forward.

    Each activation quantizer sees its input as the already quantized layers before it give it, in eval mode. Batch
    norms that QAT has added, and all others behind codes of one or two bits, are set the same way, so that the layer's
    outputs have the mean and the variance that ``reference``, the network that ``net`` was composed of, has there.
    Raises CheckError, with the layer's name, for values that are not finite or that a quantizer has no codes for.
    """
    was_training = net.training
    net.eval()
    layers = quant_layers(net)
    for name, layer in layers.items():
        _require_usable(f"The merged weight of layer {name}", layer.merged_weight(), layer.quantizer)
        layer.calibrate(initialiser)
    in_layers = quantizers_in_layers(net)
    hooks: dict[nn.Module, Hook] = {
        quantizer: _step_setter(name, initialiser)
        for name, quantizer in quantizers(net).items()
        if quantizer not in in_layers
    }
    norms = {
        name: layer
        for name, layer in layers.items()
        if isinstance(layer.norm, PostNorm1d | PostNorm2d)
        or (layer.norm is not None and layer.quantizer.bits <= POST_BN_BITS)
    }
    targets = _output_moments(norms, reference, batch)
    hooks |= {layer: _norm_setter(*targets[name]) for name, layer in norms.items()}
    with _before_each(hooks), _before_each(dict.fromkeys(_convolutions(net), _look_for_variance(batch))):
        net(batch)
    net.train(was_training)


def sees_nothing(net: nn.Module) -> str | None:
    """The first convolution whose input is the same for every image, by the batch that ``net`` was calibrated on."""
    layers = quant_layers(net).items()
    return next((name for name, layer in layers if isinstance(layer, QuantConv) and layer.sees_nothing), None)


def _convolutions(net: nn.Module) -> list[QuantConv]:
    return [layer for layer in net.modules() if isinstance(layer, QuantConv)]


def _look_for_variance(batch: Tensor) -> Hook:
    """Marks a convolution whose input is the same for every image; none where the images themselves are."""
    different = not _equal_images(batch)

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, QuantConv)
        module.sees_nothing = different and _equal_images(inputs[-1])

    return look


def _equal_images(x: Tensor) -> bool:
    """Whether images agree, up to rounding."""
    return bool((x - x[:1]).abs().max() <= 1e-5 * x.abs().max())


def _step_setter(name: str, initialiser: Initialiser) -> Hook:
    def set_steps(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, Quantizer)
        values = inputs[0]
        _require_usable(f"The activation tensor {name}", values, module)
        lowest = values.min().item()
        if lowest < 0 and not module.signed and not module.clips:
            raise CheckError(
                f"The activation tensor {name} goes down to {lowest:g}, and its quantizer is unsigned and would clip "
                f"that to 0: have the model declare it as Tap(signed=True), or use quant.act_method=lsqplus or affine."
            )
        module.calibrate(values, initialiser)

    return set_steps


def _require_usable(what: str, values: Tensor, quantizer: Quantizer) -> None:
    """CheckError for values that are not finite, too large to be squared, or all below the smallest step."""
    largest = values.abs().max().item()
    most = torch.finfo(torch.float32).max ** 0.5
    if not largest <= most:  # NaN neither
        found = "holds NaN or infinity, for which there is no step"
        if math.isfinite(largest):
            found = (
                f"goes up to {largest:.3g}, and no step can be set where squares overflow float32, beyond {most:.2g}"
            )
        raise CheckError(
            f"{what} {found}: if the data are right, train FP longer or with a lower fp.lr, or choose another "
            f"fp.checkpoint."
        )
    if AS_GOOD_AS_ZERO < largest < SMALLEST_STEP and not (quantizer.by_sign or quantizer.bits == 32):
        raise CheckError(
            f"{what} goes up to {largest:.3g} only, less than the smallest step, {SMALLEST_STEP:g}, so that all its "
            f"codes would be 0: scale the data, or choose another fp.checkpoint."
        )


def _norm_setter(target_mean: Tensor, target_var: Tensor) -> Hook:
    """Sets the batch norm behind a layer so that what its codes give comes out with these moments.

    An added one takes them as shift and squared scale. One that was trained keeps its own, ``beta`` and ``gamma``, and
    gets the statistics that lead there: ``var = gamma^2 codes' var / target var`` and the mean alike.
    """

    def set_norm(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, QuantLayer)
        norm = module.norm
        mean, var = _moments(module.before_norm(inputs[0], inputs[-1]))
        if isinstance(norm, PostNorm1d | PostNorm2d):
            norm.take_over(target_mean, target_var)
            norm.set_statistics(mean, var)
            return
        assert norm is not None and norm.running_mean is not None and norm.running_var is not None
        live = (target_var > norm.eps * norm.weight.square()) & (norm.weight.abs() > norm.eps)
        gamma = torch.where(live, norm.weight, 1.0)
        norm.running_var.copy_(torch.where(live, gamma.square() * var / target_var.where(live, 1.0), var))
        offset = (target_mean - norm.bias) * torch.sqrt(norm.running_var + norm.eps) / gamma
        norm.running_mean.copy_(torch.where(live, mean - offset, mean))

    return set_norm


def _output_moments(
    layers: dict[str, QuantLayer], reference: nn.Module | None, batch: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and variance of the reference's outputs before activation, by layer."""
    if not layers:
        return {}
    if reference is None:
        raise ValueError(f"The layers {', '.join(layers)} want their batch norms set: calibrate needs the FP network.")
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def observer(name: str) -> Hook:
        def observe(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if isinstance(module, Block):
                weight, bias = module.merged(RunningStatistics())
                found[name] = _moments(convolve(inputs[0], weight, module.geometry, bias))
            elif isinstance(module, Transposed):
                found[name] = _moments(module.before_activation(inputs[0]))
            else:
                assert isinstance(module, nn.Linear)
                found[name] = _moments(nn.functional.linear(inputs[0], module.weight, module.bias))

        return observe

    was_training = reference.training
    reference.eval()
    with _before_each({reference.get_submodule(name): observer(name) for name in layers}):
        reference(batch)
    reference.train(was_training)
    return found


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
