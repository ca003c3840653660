"""Layers that quantize their weight: a convolution around any source of kernels, and a classifier."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repq_cli.quant.functional import dequantize
from repq_cli.quant.init import Initialiser
from repq_cli.quant.quantizer import Quantizer


class FrozenWeight(NamedTuple):
    """What inference needs of a layer.

    weight      integer codes (or the float weight where ``step`` is None) in the weight's shape
    step        broadcasts against ``weight``
    multiplier  ``[O]``, of a batch norm that is not folded; applied to the convolution's output, before ``bias``
    bias        ``[O]`` or None
    """

    weight: Tensor
    step: Tensor | None
    multiplier: Tensor | None
    bias: Tensor | None

    def value(self) -> Tensor:
        """The weight that the layer multiplies with: codes times step."""
        return self.weight if self.step is None else dequantize(self.weight, self.step)


class Memo:
    """A result that is kept until one of the tensors that it was computed from changes.

    Values are compared, not versions: it notices an optimiser, a loaded checkpoint and an edit by hand alike.
    """

    def __init__(self) -> None:
        self._inputs: list[Tensor] = []
        self._result: tuple[FrozenWeight, Tensor] | None = None

    def __call__(self, inputs: list[Tensor], compute: Callable[[], FrozenWeight]) -> tuple[FrozenWeight, Tensor]:
        """The frozen weight and its value, recomputed if ``inputs`` changed."""
        if self._result is None or not self._unchanged(inputs):
            frozen = compute()
            self._result = (frozen, frozen.value())
            self._inputs = [tensor.detach().clone() for tensor in inputs]
        return self._result

    def _unchanged(self, inputs: list[Tensor]) -> bool:
        def same(a: Tensor, b: Tensor) -> bool:
            return a.device == b.device and a.dtype == b.dtype and torch.equal(a, b)

        return len(inputs) == len(self._inputs) and all(map(same, inputs, self._inputs))

    def clear(self) -> None:
        """Forget the result and free its memory."""
        self._inputs, self._result = [], None


def quantizers_in_layers(net: nn.Module) -> set[Quantizer]:
    """The quantizers of weights; all others are of activations."""
    layers = (layer for layer in net.modules() if isinstance(layer, QuantLayer))
    return {module for layer in layers for module in layer.modules() if isinstance(module, Quantizer)}


def freeze_weight(quantizer: Quantizer, weight: Tensor, multiplier: Tensor | None, bias: Tensor | None) -> FrozenWeight:
    """Integers and steps of ``weight``; their product is what the fake-quantizer gives, bit for bit."""
    if quantizer.bits == 32:
        return FrozenWeight(weight.detach(), None, multiplier, bias)
    return FrozenWeight(quantizer.integers(weight), quantizer.step_for(weight), multiplier, bias)


class KernelSource(nn.Module):
    """Gives a convolution its ``(weight, bias)``; the modes say how."""

    def forward(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor | None]:
        """The kernel of this training step; ``x`` is what the convolution reads, ``raw`` the same not quantized."""
        raise NotImplementedError

    def inference(self) -> tuple[Tensor, Tensor | None]:
        """The kernel of eval mode."""
        raise NotImplementedError

    def calibrate(self, initialiser: Initialiser) -> None:
        """Initialise the steps of quantizers inside the source, if it has any."""


class QuantLayer(nn.Module):
    """What convolution and classifier share: a weight quantizer, and a frozen form that eval mode computes once."""

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.quantizer = quantizer
        self._memo = Memo()

    def inference_weight(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """``(weight, multiplier, bias)`` of eval mode as the layer's own tensors give them, not quantized."""
        raise NotImplementedError

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """The weight of inference before quantization."""
        return self.inference_weight()[0].detach()

    @torch.no_grad()
    def freeze(self) -> FrozenWeight:
        """The layer as integers, steps and biases, by its running statistics."""
        weight, multiplier, bias = self.inference_weight()
        return freeze_weight(self.quantizer, weight, multiplier, bias)

    @torch.no_grad()
    def calibrate(self, initialiser: Initialiser) -> None:
        """Initialise the weight's steps on the weight of inference: the *merged* kernel."""
        self.quantizer.calibrate(self.merged_weight(), initialiser)

    def frozen(self) -> tuple[FrozenWeight, Tensor]:
        """``freeze()`` and its value, cached until a parameter or a statistic changes."""
        return self._memo([*self.parameters(), *self.buffers()], self.freeze)

    def train(self, mode: bool = True) -> QuantLayer:
        """Switch between training and inference; training drops the cached kernel."""
        if mode:
            self._memo.clear()
        super().train(mode)
        return self


class QuantConv(QuantLayer):
    """``activation(norm(conv(x, Q(weight), bias)))``, with ``(weight, bias)`` from any kernel source.

    ``kernel(x, raw)`` gives the training-time ``(weight, bias)`` for this batch, ``kernel.inference()`` those of eval
    mode. ``norm`` is the batch norm of a plain convolution that is not folded; else None.
    """

    def __init__(
        self,
        kernel: KernelSource,
        quantizer: Quantizer,
        activation: nn.Module,
        norm: nn.BatchNorm2d | None = None,
        *,
        stride: int,
        padding: int,
        groups: int,
    ) -> None:
        super().__init__(quantizer)
        self.kernel, self.norm, self.activation = kernel, norm, activation
        self.stride, self.padding, self.groups = stride, padding, groups
        self.norm_frozen = False

    def train(self, mode: bool = True) -> QuantConv:
        """Switch between training and inference; a frozen batch norm stays in eval mode."""
        super().train(mode)
        if self.norm is not None and self.norm_frozen:
            self.norm.eval()
        return self

    def freeze_statistics(self) -> None:
        """From now on train with the running statistics of an unfolded batch norm as they are."""
        self.norm_frozen = True
        self.train(self.training)

    def forward(self, x: Tensor, raw: Tensor | None = None) -> Tensor:
        """Convolve codes ``x``; ``raw`` is the same tensor before its quantizer, for batch-norm statistics only."""
        if self.training:
            weight, bias = self.kernel(x, x if raw is None else raw)
            y = self._convolve(x, self.quantizer(weight), bias)
            return self.activation(y if self.norm is None else self.norm(y))
        frozen, weight = self.frozen()
        return self.activation(self._infer(x, weight, frozen))

    def calibrate(self, initialiser: Initialiser) -> None:
        """Steps inside the kernel's source first: the merged weight depends on them."""
        self.kernel.calibrate(initialiser)
        super().calibrate(initialiser)

    def _infer(self, x: Tensor, weight: Tensor, frozen: FrozenWeight) -> Tensor:
        if frozen.multiplier is None:
            return self._convolve(x, weight, frozen.bias)
        assert frozen.bias is not None
        y = self._convolve(x, weight, None)
        return y * frozen.multiplier.view(-1, 1, 1) + frozen.bias.view(-1, 1, 1)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, self.stride, self.padding, 1, self.groups)

    def inference_weight(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The merged kernel by running statistics; the multiplier and shift of an unfolded batch norm beside it."""
        weight, bias = self.kernel.inference()
        if self.norm is None:
            return weight, None, bias
        norm = self.norm
        assert norm.running_var is not None and norm.running_mean is not None
        multiplier = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        shift = norm.running_mean if bias is None else norm.running_mean - bias
        return weight, multiplier, norm.bias - shift * multiplier


class QuantLinear(QuantLayer):
    """A fully connected layer with a quantized weight, under the same rule as convolutions."""

    def __init__(self, linear: nn.Linear, quantizer: Quantizer) -> None:
        super().__init__(quantizer)
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return F.linear(x, self.quantizer(self.linear.weight), self.linear.bias)
        frozen, weight = self.frozen()
        return F.linear(x, weight, frozen.bias)

    def inference_weight(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The classifier's weight and bias."""
        return self.linear.weight, None, self.linear.bias
