"""Layers that quantize their weight: a convolution around any source of kernels, and a classifier."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repq_cli.batch_norm import norm_multiplier
from repq_cli.quant.frozen import FrozenWeight, Inference, Memo
from repq_cli.quant.functional import input_scale
from repq_cli.quant.init import Initialiser
from repq_cli.quant.post_norm import PostNorm1d, PostNorm2d
from repq_cli.quant.quantizer import Quantizer

LARGEST_BIAS = 2.0**30  # as an int32 code, with room for the sum of products that it is added to


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
    """What convolution and classifier share: a weight quantizer, and a frozen form that eval mode computes once.

    norm        a batch norm behind the layer that is not folded, or None
    int32_bias  whether inference adds a bias of integers: multiples of the weight's times the input's step
    """

    def __init__(
        self,
        quantizer: Quantizer,
        norm: nn.BatchNorm1d | nn.BatchNorm2d | None,
        int32_bias: bool,
    ) -> None:
        super().__init__()
        self.quantizer, self.norm, self.int32_bias = quantizer, norm, int32_bias
        self.norm_frozen = False
        self._memo = Memo()
        self._reads: list[Quantizer] = []  # a plain list: the input's quantizer is no module of this layer

    def reads(self, quantizer: Quantizer) -> None:
        """Say whose codes this layer reads."""
        self._reads = [quantizer]

    def kernel_of_inference(self) -> tuple[Tensor, Tensor | None]:
        """``(weight, bias)`` of eval mode before batch norm, not quantized."""
        raise NotImplementedError

    def before_norm(self, x: Tensor, raw: Tensor) -> Tensor:
        """The layer without its batch norm and activation, its weight fake-quantized."""
        raise NotImplementedError

    def inference_weight(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """``(weight, multiplier, bias)`` of eval mode, not quantized; batch norm as multiplier and bias."""
        weight, bias = self.kernel_of_inference()
        if self.norm is None:
            return weight, None, bias
        norm = self.norm
        assert norm.running_var is not None and norm.running_mean is not None
        multiplier = norm_multiplier(norm.weight, norm.running_var, norm.eps)
        shift = norm.running_mean if bias is None else norm.running_mean - bias
        return weight, multiplier, norm.bias - shift * multiplier

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """The weight of inference before quantization."""
        return self.kernel_of_inference()[0].detach()

    @torch.no_grad()
    def freeze(self) -> FrozenWeight:
        """The layer as integers, steps and biases, by its running statistics.

        Codes times steps are what the fake-quantizer gives, bit for bit.
        """
        weight, multiplier, bias = self.inference_weight()
        if self.quantizer.bits == 32:
            return FrozenWeight(weight.detach(), None, multiplier, bias)
        grid = self.quantizer.grid(weight)
        if not (self.int32_bias and self._reads and bias is not None and multiplier is None):
            return FrozenWeight(self.quantizer.integers(weight), grid, multiplier, bias)
        # A dead channel's weights are so small that its bias would be no int32 in their step: it gets a larger one.
        input_step = self._reads[0].grid(weight).step
        least = bias.abs() / (LARGEST_BIAS * input_step)
        needed = least.view(-1, *[1] * (weight.dim() - 1)) if grid.step.numel() > 1 else least.max()
        grid = grid._replace(step=torch.maximum(grid.step, needed))
        bias_step = grid.step.flatten() * input_step
        codes = (bias / bias_step).round_()
        return FrozenWeight(self.quantizer.integers_on(grid, weight), grid, None, codes, bias_step)

    @torch.no_grad()
    def calibrate(self, initialiser: Initialiser) -> None:
        """Initialise the weight's steps on the weight of inference: the *merged* kernel."""
        self.quantizer.calibrate(self.merged_weight(), initialiser)

    def inference(self) -> Inference:
        """``freeze()`` and its values, cached until a parameter or a statistic changes."""
        modules = (self, *self._reads) if self.int32_bias else (self,)
        inputs = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        return self._memo(inputs, self.freeze)

    def latent_weights(self) -> list[nn.Parameter]:
        """The trained kernels behind the quantized weight: one, or those of all branches."""
        return [parameter for parameter in self.parameters() if parameter.dim() > 1]

    def train(self, mode: bool = True) -> QuantLayer:
        """Switch between training and inference; training drops the cached kernel, a frozen norm stays in eval mode."""
        if mode:
            self._memo.clear()
        super().train(mode)
        if self.norm is not None and self.norm_frozen:
            self.norm.eval()
        return self

    def freeze_statistics(self) -> None:
        """From now on train with the running statistics of an unfolded batch norm as they are.

        One that QAT has added goes on following the codes.
        """
        self.norm_frozen = not isinstance(self.norm, PostNorm1d | PostNorm2d)
        self.train(self.training)

    def _scaled(self, y: Tensor, frozen: Inference, trailing: int) -> Tensor:
        """``y`` times the multiplier of an unfolded batch norm, plus the bias."""
        assert frozen.frozen.multiplier is not None and frozen.bias is not None
        shape = (-1, *[1] * trailing)
        return y * frozen.frozen.multiplier.view(shape) + frozen.bias.view(shape)


class QuantConv(QuantLayer):
    """``activation(norm(conv(x, Q(weight), bias)))``, with ``(weight, bias)`` from any kernel source.

    ``kernel(x, raw)`` gives the training-time ``(weight, bias)`` for this batch, ``kernel.inference()`` those of eval
    mode.

    pad_value    what the input is padded with
    input_scale  multiply the convolution's output by XNOR-Net's K, the box mean of ``mean_i |raw_i|``
                 (arXiv 1603.05279, section 3.2)
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
        pad_value: float = 0.0,
        input_scale: bool = False,
        int32_bias: bool = False,
    ) -> None:
        super().__init__(quantizer, norm, int32_bias)
        self.kernel, self.activation = kernel, activation
        self.stride, self.padding, self.groups = stride, padding, groups
        self.pad_value, self.input_scale = pad_value, input_scale

    def forward(self, x: Tensor, raw: Tensor | None = None) -> Tensor:
        """Convolve codes ``x``; ``raw`` is the same tensor before its quantizer, for statistics and ``input_scale``."""
        return self.activation(self.before_activation(x, x if raw is None else raw))

    def before_activation(self, x: Tensor, raw: Tensor) -> Tensor:
        """Convolution and batch norm."""
        if self.training:
            y = self.before_norm(x, raw)
            return y if self.norm is None else self.norm(y)
        inference = self.inference()
        if inference.frozen.multiplier is None:
            return self._convolve(x, raw, inference.weight, inference.bias)
        return self._scaled(self._convolve(x, raw, inference.weight, None), inference, 2)

    def before_norm(self, x: Tensor, raw: Tensor) -> Tensor:
        """The convolution alone, its weight fake-quantized."""
        weight, bias = self.kernel(x, raw) if self.training else self.kernel.inference()
        return self._convolve(x, raw, self.quantizer(weight), bias)

    def calibrate(self, initialiser: Initialiser) -> None:
        """Steps inside the kernel's source first: the merged weight depends on them."""
        self.kernel.calibrate(initialiser)
        super().calibrate(initialiser)

    def _convolve(self, x: Tensor, raw: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding = self.padding
        if self.pad_value and padding:
            x, padding = F.pad(x, [padding] * 4, value=self.pad_value), 0
        if not self.input_scale:
            return F.conv2d(x, weight, bias, self.stride, padding, 1, self.groups)
        scale = input_scale(raw, weight.shape, self.stride, self.padding)
        y = F.conv2d(x, weight, None, self.stride, padding, 1, self.groups) * scale
        return y if bias is None else y + bias.view(-1, 1, 1)

    def kernel_of_inference(self) -> tuple[Tensor, Tensor | None]:
        """The merged kernel by running statistics."""
        return self.kernel.inference()


class QuantLinear(QuantLayer):
    """A fully connected layer with a quantized weight, under the same rule as convolutions."""

    def __init__(
        self,
        linear: nn.Linear,
        quantizer: Quantizer,
        norm: nn.BatchNorm1d | None = None,
        *,
        int32_bias: bool = False,
    ) -> None:
        super().__init__(quantizer, norm, int32_bias)
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            y = self.before_norm(x, x)
            return y if self.norm is None else self.norm(y)
        inference = self.inference()
        if inference.frozen.multiplier is None:
            return F.linear(x, inference.weight, inference.bias)
        return self._scaled(F.linear(x, inference.weight), inference, 0)

    def before_norm(self, x: Tensor, raw: Tensor) -> Tensor:
        """The matrix product alone, its weight fake-quantized."""
        return F.linear(x, self.quantizer(self.linear.weight), self.linear.bias)

    def kernel_of_inference(self) -> tuple[Tensor, Tensor | None]:
        """The classifier's weight and bias."""
        return self.linear.weight, self.linear.bias


def quant_layers(net: nn.Module) -> dict[str, QuantLayer]:
    """Every quantized layer by name."""
    return {name: module for name, module in net.named_modules() if isinstance(module, QuantLayer)}


def quantizers_in_layers(net: nn.Module) -> set[Quantizer]:
    """The quantizers of weights; all others are of activations."""
    layers = quant_layers(net).values()
    return {module for layer in layers for module in layer.modules() if isinstance(module, Quantizer)}


@torch.no_grad()
def clip_latent_weights(net: nn.Module) -> None:
    """What a training loop owes the quantizers after every update: float weights stay within their bounds."""
    for layer in quant_layers(net).values():
        bound = layer.quantizer.latent_bound
        if bound is not None:
            for weight in layer.latent_weights():
                weight.clamp_(-bound, bound)


def undecayed_latent_weights(net: nn.Module) -> list[nn.Parameter]:
    """Float weights that weight decay must not pull at: their magnitude means nothing."""
    layers = quant_layers(net).values()
    return [weight for layer in layers if not layer.quantizer.latent_decays for weight in layer.latent_weights()]
