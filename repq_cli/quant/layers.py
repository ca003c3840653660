"""Layers that quantize their weight: a convolution around any source of kernels, and a classifier."""

from __future__ import annotations

from collections.abc import MutableMapping
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repq_cli import collective
from repq_cli.batch_norm import as_multiplication, shifted_norm
from repq_cli.precision import full_precision, in_float32
from repq_cli.quant.frozen import FrozenWeight, Inference
from repq_cli.quant.functional import input_scale
from repq_cli.quant.init import Initialiser
from repq_cli.quant.int32_bias import SMALLEST_WORTH, integer_sums, rounding
from repq_cli.quant.kernel_source import KernelSource
from repq_cli.quant.post_norm import PostNorm1d, PostNorm2d
from repq_cli.quant.quantizer import Quantizer
from repq_cli.quant.sums import Steps, per_channel, scaled_sums, sums_in_training, weighted_sums
from repq_cli.quant.windows import Around, Span, Window, torch_padding

# What layers inside ``frozen_layers`` compute with. No attribute of theirs: a copy of a layer has none of it.
KEPT: MutableMapping[QuantLayer, Inference] = WeakKeyDictionary()


class QuantLayer(nn.Module):
    """What convolution and classifier share: a weight quantizer, and a frozen form that eval mode computes with.

    norm        a batch norm behind the layer that is not folded, or None
    int32_bias  whether biases are integers wherever they can be, see ``int32_bias.py``
    """

    input_scale = False

    def __init__(self, quantizer: Quantizer, norm: nn.BatchNorm1d | nn.BatchNorm2d | None, int32_bias: bool) -> None:
        super().__init__()
        self.quantizer, self.norm, self.int32_bias = quantizer, norm, int32_bias
        self.norm_frozen = False
        self._reads: list[Quantizer] = []  # a plain list: the input's quantizer is no module of this layer
        self._feeds_signs = False

    def link(self, reads: Quantizer | None, feeds_signs: bool) -> None:
        """Say whose codes this layer reads, if any, and whether signs are taken of what it gives."""
        self._reads = [] if reads is None else [reads]
        self._feeds_signs = feeds_signs

    def kernel_of_inference(self) -> tuple[Tensor, Tensor | None]:
        """``(weight, bias)`` of eval mode before batch norm, not quantized."""
        raise NotImplementedError

    def before_norm(self, x: Tensor, raw: Tensor) -> Tensor:
        """The layer without its batch norm and activation, its weight fake-quantized."""
        raise NotImplementedError

    def inference_weight(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """``(weight, multiplier, bias)`` of eval mode, not quantized; batch norm as multiplier and bias."""
        weight, bias = self.kernel_of_inference()
        return (weight, None, bias) if self.norm is None else (weight, *as_multiplication(self.norm, bias))

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """The weight of inference before quantization."""
        kept = self._kept
        return self.kernel_of_inference()[0].detach() if kept is None else kept.frozen.merged

    @torch.no_grad()
    def freeze(self) -> FrozenWeight:
        """The layer as integers, steps and biases, by its running statistics.

        Codes times steps are what the fake-quantizer gives, bit for bit.
        """
        if (kept := self._kept) is not None:
            return kept.frozen
        weight, multiplier, bias = self.inference_weight()
        merged = weight.detach()
        if self.quantizer.bits == 32:
            return FrozenWeight(merged, None, multiplier, bias, None, merged)
        if bias is None or not self._has_integer_bias:
            codes = self.quantizer.integers(weight)
            return FrozenWeight(codes, self.quantizer.grid(weight), multiplier, bias, None, merged)
        input_step = self._reads[0].grid(weight).step
        found = integer_sums(self.quantizer, weight, multiplier, bias, input_step)
        return FrozenWeight(found.codes, found.grid, None, found.bias, found.bias_step, merged)

    @property
    def _has_integer_bias(self) -> bool:
        """Where codes are summed, unless a float map multiplies the sums, or signs are taken of them.

        Of signs an integer decides already, and to round what it is compared with would move it.
        """
        of_codes = len(self._reads) > 0 and self.quantizer.bits < 32
        return self.int32_bias and of_codes and not (self._feeds_signs or self.input_scale)

    @torch.no_grad()
    def calibrate(self, initialiser: Initialiser) -> None:
        """Initialise the weight's steps on the weight of inference: the *merged* kernel."""
        self.quantizer.calibrate(self.merged_weight(), initialiser)

    @torch.no_grad()
    def inference(self) -> Inference:
        """What eval mode computes with: by ``freeze()``, anew for every call outside ``frozen_layers``."""
        if (kept := self._kept) is not None:
            return kept
        frozen = self.freeze()
        step = self._reads[0].grid(frozen.weight).step if self._reads else None
        return frozen.inference(step, bias_last=self.input_scale)

    @property
    def _kept(self) -> Inference | None:
        """What it computes with inside ``frozen_layers``."""
        return None if torch.compiler.is_compiling() else KEPT.get(self)

    def state(self) -> list[Tensor]:
        """All tensors that ``inference`` depends on: the layer's, and those of the quantizer that it reads."""
        modules = (self, *self._reads)
        return [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]

    def latent_weights(self) -> list[nn.Parameter]:
        """The trained kernels behind the quantized weight: one, or those of all branches."""
        return [parameter for parameter in self.parameters() if parameter.dim() > 1]

    def train(self, mode: bool = True) -> QuantLayer:
        """Switch between training and inference; a frozen norm stays in eval mode."""
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

    def _weighted(self, x: Tensor, weight: Tensor, bias: Tensor | None, window: Window | None) -> Tensor:
        """Sums with what the quantizer makes of ``weight``, before batch norm.

        Of codes, scaled, where signs are taken of them; elsewhere rounding decides nothing, and dividing by steps would
        cost a twentieth of the time.
        """
        quantized = self.quantizer(weight)
        if bias is not None and self.norm is None and self._has_integer_bias:
            bias = bias + rounding(bias.detach(), self._worth(weight, x))
        if not (self._feeds_signs and self._reads and self.quantizer.bits < 32):
            return sums_in_training(x, quantized, bias, window)
        x = in_float32(x)
        with torch.no_grad():
            steps = Steps(self._reads[0].grid(x).step, self.quantizer.grid(weight).step)
        with full_precision():
            return scaled_sums(x, quantized, bias, steps, window)

    @torch.no_grad()
    def _worth(self, weight: Tensor, x: Tensor) -> Tensor:
        """``[O]`` or ``[1]``: what a bias's integer is worth, before batch norm."""
        worth = self.quantizer.grid(weight).step * self._reads[0].grid(x).step
        return worth.flatten() / self.quantizer.fineness

    def normed(self, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Batch norm of sums ``y`` with this kernel, shifted so that the bias of inference is an integer.

        By running statistics, as inference has it.
        """
        norm = self.norm
        if norm is None or not self._has_integer_bias:
            return y if norm is None else norm(y)
        with torch.no_grad():
            multiplier, shift = as_multiplication(norm, bias)
            shift = rounding(shift, (self._worth(weight, y) * multiplier.abs()).clamp_min_(SMALLEST_WORTH))
        return shifted_norm(norm, y, shift)


class QuantConv(QuantLayer):
    """``activation(norm(conv(x, Q(weight), bias)))``, with ``(weight, bias)`` from any kernel source.

    ``kernel(x, raw)`` gives the training-time ``(weight, bias)`` for this batch, ``kernel.inference()`` those of eval
    mode.

    stride, padding, dilation  of rows and columns; padding also of all four sides: top, left, bottom, right
    output_padding  of a transposed convolution, whose weight is ``[O, I/g, kh, kw]`` as well; None: it is none
    pad_value    what the input is padded with
    input_scale  multiply the convolution's output by XNOR-Net's K, the box mean of ``mean_i |raw_i|``
                 (arXiv 1603.05279, section 3.2)
    sees_nothing  its input is the same for every image, by ``calibrate``'s batch: see ``before_norm``
    """

    sees_nothing = False

    def __init__(
        self,
        kernel: KernelSource,
        quantizer: Quantizer,
        activation: nn.Module,
        norm: nn.BatchNorm2d | None = None,
        *,
        stride: Span,
        padding: Around,
        groups: int,
        dilation: Span = 1,
        output_padding: Span | None = None,
        pad_value: float = 0.0,
        input_scale: bool = False,
        int32_bias: bool = False,
    ) -> None:
        super().__init__(quantizer, norm, int32_bias)
        self.kernel, self.activation = kernel, activation
        self.stride, self.padding, self.groups = stride, padding, groups
        self.dilation, self.output_padding = dilation, output_padding
        self.pad_value, self.input_scale = pad_value, input_scale

    def forward(self, x: Tensor, raw: Tensor | None = None) -> Tensor:
        """Convolve codes ``x``; ``raw`` is the same tensor before its quantizer, for statistics and ``input_scale``."""
        return self.activation(self.before_activation(x, x if raw is None else raw))

    def before_activation(self, x: Tensor, raw: Tensor) -> Tensor:
        """Convolution and batch norm."""
        if self.training:
            return self.normed(*self._in_training(x, raw))
        frozen = self.inference()
        return frozen(*self._padded(x), self._scale(raw, frozen.weight))

    def before_norm(self, x: Tensor, raw: Tensor) -> Tensor:
        """The convolution alone, its weight fake-quantized.

        Behind an input without variance a batch norm that is folded by the batch divides by ``sqrt(eps)``. Whatever
        quantization changes in the mean then leaves some hundred times as large, and a chain of such layers overflows,
        where a batch norm behind the codes would have taken it away: the outputs keep the mean that they have without
        quantization, all of it in float32.
        """
        return self._in_training(x, raw)[0]

    def _in_training(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """``before_norm``, and the kernel that it was computed with."""
        if self.training and self.sees_nothing and self.kernel.follows_batches:
            with full_precision():
                return self._sums(in_float32(x), in_float32(raw), keeps_mean=True)
        return self._sums(x, raw, keeps_mean=False)

    def _sums(self, x: Tensor, raw: Tensor, keeps_mean: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        weight, bias = self.kernel(x, raw) if self.training else self.kernel.inference()
        inputs, window = self._padded(x)
        scale = self._scale(raw, weight)
        summed_bias = bias if scale is None else None
        y = self._weighted(inputs, weight, summed_bias, window)
        if keeps_mean:
            exact = weighted_sums(self._padded(raw)[0], weight, summed_bias, window)
            y = y + collective.mean_by_channel(exact - y)
        if scale is not None:
            y = y * scale
            y = y if bias is None else y + per_channel(bias, y)
        return y, weight, bias

    def calibrate(self, initialiser: Initialiser) -> None:
        """Steps inside the kernel's source first: the merged weight depends on them."""
        self.kernel.calibrate(initialiser)
        super().calibrate(initialiser)

    def _padded(self, x: Tensor) -> tuple[Tensor, Window]:
        """The input with padding that is not zero or not alike on both sides, and how to convolve it then."""
        padding, others = self.padding, (self.groups, self.dilation, self.output_padding)
        if (isinstance(padding, int) or len(padding) == 2) and not (self.pad_value and padding):
            return x, Window(self.stride, padding, *others)
        return F.pad(x, torch_padding(padding), value=self.pad_value), Window(self.stride, 0, *others)

    def _scale(self, raw: Tensor, weight: Tensor) -> Tensor | None:
        """XNOR-Net's K, where it is asked for."""
        if not self.input_scale:
            return None
        assert isinstance(self.stride, int) and isinstance(self.padding, int)
        return input_scale(raw, weight.shape, self.stride, self.padding)

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
        if not self.training:
            return self.inference()(x, None)
        return self.normed(self.before_norm(x, x), self.linear.weight, self.linear.bias)

    def before_norm(self, x: Tensor, raw: Tensor) -> Tensor:
        """The matrix product alone, its weight fake-quantized."""
        return self._weighted(x, self.linear.weight, self.linear.bias, None)

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
