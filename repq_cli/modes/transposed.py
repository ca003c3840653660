"""Transposed convolutions in QAT: their own weight is quantized, and a batch norm stays behind the sums."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repq_cli.modes.kernels import signs_taken
from repq_cli.quant.build import weight_quantizer
from repq_cli.quant.kernel_source import KernelSource
from repq_cli.quant.layers import QuantConv
from repq_cli.quant.options import QuantOptions
from repq_cli.quant.post_norm import PostNorm2d
from repq_cli.quant.windows import Span, turned
from repq_cli.reparam.layout import alike
from repq_cli.reparam.transposed import Transposed


class TransposedKernel(KernelSource):
    """The weight of a transposed convolution, ``[O, I/g, kh, kw]`` as those of others are."""

    def __init__(self, conv: nn.ConvTranspose2d) -> None:
        super().__init__()
        self.weight, self.bias, self.groups = conv.weight, conv.bias, conv.groups

    def forward(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.inference()

    def inference(self) -> tuple[Tensor, Tensor | None]:
        """The same at all times."""
        return turned(self.weight, self.groups), self.bias


def compose_transposed(layer: Transposed, quant: QuantOptions, edge: bool, post_bn: bool) -> QuantConv:
    """One transposed convolution as a quantized one; ``post_bn``: whether a batch norm is added where it has none."""
    conv, norm = layer.conv, layer.norm
    kernel = TransposedKernel(conv)
    shape = kernel.inference()[0].shape
    quantizer = weight_quantizer(quant, shape, edge, depthwise=conv.groups == conv.in_channels > 1)
    if norm is not None:
        _turn_round(conv, norm)
    elif quantizer.scale_free or post_bn:
        norm = PostNorm2d(conv.out_channels)
    return QuantConv(
        kernel,
        quantizer,
        layer.activation,
        norm,
        stride=_span(conv.stride),
        padding=_span(conv.padding),  # type: ignore[arg-type]
        groups=conv.groups,
        dilation=_span(conv.dilation),
        output_padding=_span(conv.output_padding),
        int32_bias=quant.int32_bias,
    ).to(conv.weight)


def _span(sizes: tuple[int, ...]) -> Span:
    rows, columns = sizes
    return alike((rows, columns))


@torch.no_grad()
def _turn_round(conv: nn.ConvTranspose2d, norm: nn.BatchNorm2d) -> None:
    """As ``kernels.turn_round``."""
    conv.weight.copy_(turned(turned(conv.weight, conv.groups) * signs_taken(norm, conv.bias), conv.groups))
