"""Convolutions and products with a weight: sums of codes, times what they are worth, plus a bias."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from repq_cli.deploy.fixed_point import with_bias
from repq_cli.deploy.integer_scales import Scaled, prepare_layer
from repq_cli.deploy.operations.base import (
    FORMAT,
    FORMAT_OF_ANY_NETWORK,
    FORMAT_WITH_IDENTITIES,
    LARGEST_TENSOR,
    Bits,
    Constants,
    Node,
    Operation,
    Optional,
    Padding,
    Places,
    Size,
    Steps,
    schema,
)
from repq_cli.deploy.operations.checks import problems_of_codes, problems_of_tensors
from repq_cli.deploy.operations.quantize import CODES
from repq_cli.deploy.operations.unary import ACTIVATIONS, integer_ends
from repq_cli.deploy.packing import packed_bits
from repq_cli.errors import ConfigError
from repq_cli.quant.sums import weighted_sums
from repq_cli.quant.windows import Around, Span, Window, pair, places, torch_padding

if TYPE_CHECKING:
    from repq_cli.deploy.integer import IntegerNet
    from repq_cli.deploy.network import DeployedNet
    from repq_cli.deploy.onnx_graph import OnnxGraph

LAYER = {"bits": Bits | Literal[32], "weight": str, "bias": Optional, "bias_step": Optional, "multiplier": Optional}
OF_CODES = {**CODES, "weight_step": str, "weight_zero_point": Optional}  # of a layer of less than 32 bits


class Layer(Operation):
    """``sums(x, weight, summed_bias) * factor + bias``, each where there is one; ``shape`` is the weight's."""

    def format(self, node: Node) -> int:
        return FORMAT_WITH_IDENTITIES if node.get("identity") else FORMAT

    def problems(self, node: Node, known: Mapping[str, Node], tensors: Mapping[str, Tensor]) -> Iterator[str]:
        outputs, count = node["shape"][0], math.prod(node["shape"])
        if count > LARGEST_TENSOR:
            yield f"has a weight of {count} elements"
            return
        if node["bits"] != 32:
            if missing := [key for key in OF_CODES if key not in node]:
                yield f"lacks {', '.join(missing)}"
                return
            yield from problems_of_codes(node)
        elif strange := [key for key in (*OF_CODES, "identity") if node.get(key)]:
            yield f"has {', '.join(strange)}, and weights of 32 bits"
        elif node["bias_step"]:
            yield "has a bias_step, and weights of 32 bits"
        packed = -(-count * packed_bits(node["bits"]) // 8) if node["bits"] != 32 else count
        channels = {1, outputs}
        sizes = {"weight": {packed}, **dict.fromkeys(("weight_step", "weight_zero_point"), channels), "bias": {outputs}}
        sizes |= {**dict.fromkeys(("bias_step", "multiplier", "slope"), channels), "identity": {outputs}}
        yield from problems_of_tensors(node, tensors, sizes)

    def hold(self, net: DeployedNet, node: Node) -> None:
        super().hold(net, node)
        stored, codes = net.stored, net.codes(node) if node["bits"] != 32 else None
        weight = stored[node["weight"]] if codes is None else codes.to(stored[node["weight_step"]].dtype)
        if node.get("weight_zero_point"):
            weight -= stored[node["weight_zero_point"]]
        factor = stored[node["multiplier"]] if node["multiplier"] else None
        summed = factor is None
        if node["name"] in net.on_codes:
            step = stored[net.quantizers[node["inputs"][0]]["step"]]
            worth = stored[node["weight_step"]].flatten() * step
            factor, summed = worth if factor is None else worth * factor, bool(node["bias_step"])
        elif node.get("weight_step"):
            weight *= stored[node["weight_step"]]
        summed &= not node.get("input_scale")
        bias = stored[node["bias"]].to(weight.dtype) if node["bias"] else None
        if bias is not None and node["bias_step"]:
            step = stored[node["bias_step"]]
            bias = bias * (step / factor if summed and factor is not None else step)  # in sums: a power of two
        for key, tensor in (("weight", weight), ("factor", factor), ("summed_bias" if summed else "bias", bias)):
            if tensor is not None:
                net.hold(node, key, tensor)

    def scales(self, node: Node, known: list[Scaled], net: IntegerNet) -> tuple[Constants, Scaled]:
        return prepare_layer(node, known, net.deployed)

    def macs(self, node: Node, given: Sequence[int], made: Sequence[int]) -> int:
        """Multiply-accumulates: each weight is used once at every place of what is made; sizes ``[1, O, …]``."""
        return math.prod(node["shape"]) * (math.prod(made) // node["shape"][0])


class Linear(Layer):
    """A product with a matrix ``[O, I]``."""

    name = "linear"
    keys = schema(LAYER, shape=tuple[Size, Size])
    others = OF_CODES

    def compute(self, net: DeployedNet, node: Node, x: Tensor) -> Tensor:
        weight = net.held(node, "weight")
        assert weight is not None
        return scaled(net, node, exact(net, node, F.linear(x, weight, net.held(node, "summed_bias"))))

    def size(self, net: DeployedNet, node: Node, *given: list[int]) -> list[int]:
        outputs, inputs = node["shape"]
        return [given[0][0], outputs] if given[0][1:] == [inputs] else net.size_by_torch(node, *given)

    def integers(self, net: IntegerNet, node: Node, constants: Constants, x: Tensor) -> Tensor:
        return with_bias(x @ constants["weight"].T, constants["left"], constants["bias"])

    def onnx(self, graph: OnnxGraph, node: Node) -> None:
        graph.linear(node)


class Conv(Layer):
    """A convolution and its activation function. Of two inputs the second is the first before it was quantized."""

    name = "conv"
    keys = schema(
        LAYER,
        shape=tuple[Size, Size, Size, Size],
        stride=Steps,
        padding=Padding,
        groups=Size,
        pad_value=Literal[-1, 0, 1],
        input_scale=bool,
        activation=Literal["none", "relu", "relu6", "hardtanh", "prelu"],
    )
    others = schema(OF_CODES, slope=str, identity=Optional, dilation=Steps)
    inputs = (1, 2)
    tensors = ("slope",)

    def format(self, node: Node) -> int:
        rows, columns = node["shape"][2:]
        old = isinstance(node["stride"], int) and isinstance(node["padding"], int) and "dilation" not in node
        return super().format(node) if old and rows == columns else FORMAT_OF_ANY_NETWORK

    def problems(self, node: Node, known: Mapping[str, Node], tensors: Mapping[str, Tensor]) -> Iterator[str]:
        outputs = node["shape"][0]
        if outputs % node["groups"]:
            yield f"has {outputs} outputs in {node['groups']} groups"
        if (node["activation"] == "prelu") != ("slope" in node):
            yield "has a slope without prelu, or prelu without a slope"
        if node["input_scale"] != (len(node["inputs"]) == 2):
            yield "has other inputs than its input_scale wants"
        if node["pad_value"] and known[node["inputs"][0]].get("op") != "quantize":
            yield "pads with a value, and reads no codes"
        if self.format(node) == FORMAT_OF_ANY_NETWORK and (node["input_scale"] or node.get("identity")):
            yield "has an input_scale or an identity, and a window that is not square"
        yield from super().problems(node, known, tensors)

    def window(self, node: Node, padding: Span) -> Window:
        """How it walks over its input, which may have been padded."""
        return Window(node["stride"], padding, node["groups"], node.get("dilation", 1))

    def compute(self, net: DeployedNet, node: Node, x: Tensor, *raw: Tensor) -> Tensor:
        weight, padding = net.held(node, "weight"), node["padding"]
        assert weight is not None
        x, padding = padded(x, padding, net.pad_code(node) if node["pad_value"] and padding else 0)
        sums = weighted_sums(x, weight, net.held(node, "summed_bias"), self.window(node, padding))
        return behind(net, node, exact(net, node, sums), *raw)

    def size(self, net: DeployedNet, node: Node, *given: list[int]) -> list[int]:
        outputs, inputs, *sizes = node["shape"]
        images, channels, *extents = given[0]
        left, right, top, bottom = torch_padding(node["padding"])
        window = sizes, node["stride"], node.get("dilation", 1), (top + bottom, left + right)
        if len(given) == 1 and channels == inputs * node["groups"] and (found := places(extents, *window)):
            return [images, outputs, *found]
        return net.size_by_torch(node, *given)

    def scales(self, node: Node, known: list[Scaled], net: IntegerNet) -> tuple[Constants, Scaled]:
        constants, out = super().scales(node, known, net)
        ends = self.limits(node)
        return constants if ends is None else constants | integer_ends(ends, out.scale), out

    def integers(self, net: IntegerNet, node: Node, constants: Constants, x: Tensor) -> Tensor:
        y = with_bias(self.sums(node, x, constants), constants["left"], constants["bias"])
        activation = ACTIVATIONS[node["activation"]]
        return y if activation is None else activation.integers(net, node, constants, y)

    def sums(self, node: Node, x: Tensor, constants: Constants) -> Tensor:
        """Of integers."""
        x, padding = padded(x, node["padding"], constants["pad"])
        return integer_conv(x, constants["weight"], self.window(node, padding))

    def onnx(self, graph: OnnxGraph, node: Node) -> None:
        graph.conv(node, "Conv", {})

    def limits(self, node: Node) -> tuple[float, float] | None:
        activation = ACTIVATIONS[node["activation"]]
        return None if activation is None else activation.limits(node)


class ConvTranspose(Conv):
    """A transposed convolution. Its weight is ``[O, I/g, kh, kw]``, as those of others are."""

    name = "conv_transpose"
    keys = schema(Conv.keys, pad_value=Literal[0], input_scale=Literal[False], padding=Places, output_padding=Places)
    others = schema(OF_CODES, slope=str, dilation=Steps)
    inputs = (1, 1)

    def format(self, node: Node) -> int:
        return FORMAT_OF_ANY_NETWORK

    def window(self, node: Node, padding: Span) -> Window:
        return super().window(node, padding)._replace(output_padding=node["output_padding"])

    def size(self, net: DeployedNet, node: Node, *given: list[int]) -> list[int]:
        return net.size_by_torch(node, *given)

    def macs(self, node: Node, given: Sequence[int], made: Sequence[int]) -> int:
        """Each weight is used once at every place of what is given."""
        return math.prod(node["shape"]) * math.prod(given[2:])

    def sums(self, node: Node, x: Tensor, constants: Constants) -> Tensor:
        """As a convolution with zeros between the input's numbers, and its kernel turned round."""
        spans = zip(node["shape"][2:], pair(node.get("dilation", 1)), pair(node["padding"]), strict=True)
        before = [(size - 1) * dilation - padding for size, dilation, padding in spans]
        after = [size + more for size, more in zip(before, pair(node["output_padding"]), strict=True)]
        x = F.pad(spread(x, pair(node["stride"])), [before[1], after[1], before[0], after[0]])
        window = Window(1, 0, node["groups"], node.get("dilation", 1))
        return integer_conv(x, constants["weight"].flip((2, 3)), window)

    def onnx(self, graph: OnnxGraph, node: Node) -> None:
        """Less padding behind is more output; what is left of ``output_padding`` runtimes want below the stride."""
        padding, more = pair(node["padding"]), pair(node["output_padding"])
        less = [min(sizes) for sizes in zip(padding, more, strict=True)]
        left = [size - taken for size, taken in zip(more, less, strict=True)]
        if any(size >= stride for size, stride in zip(left, pair(node["stride"]), strict=True)):
            raise ConfigError(f"The layer {node['name']} has an output_padding of {more}, for which ONNX has no form.")
        pads = [*padding, *(size - taken for size, taken in zip(padding, less, strict=True))]
        graph.conv(node, "ConvTranspose", {"pads": pads, "output_padding": left})


def padded(x: Tensor, padding: Around, value: int) -> tuple[Tensor, Span]:
    """What a convolution reads, and its padding then, if its own has a value or is not alike on both sides."""
    if not value and (isinstance(padding, int) or len(padding) == 2):
        return x, tuple(padding) if isinstance(padding, list) else padding
    return F.pad(x, torch_padding(padding), value=value), 0


def integer_conv(x: Tensor, weight: Tensor, window: Window) -> Tensor:
    """Sums of ``int32``, which float64 holds as well: torch has no convolution with dilation of integers."""
    if pair(window.dilation) == (1, 1):
        return weighted_sums(x, weight, None, window)
    return weighted_sums(x.double(), weight.double(), None, window).to(torch.int32)


def spread(x: Tensor, steps: tuple[int, int]) -> Tensor:
    """``[..., H, W]`` with zeros between rows and columns, which are so many steps apart then."""
    if steps == (1, 1):
        return x
    rows, columns = ((size - 1) * step + 1 for size, step in zip(x.shape[-2:], steps, strict=True))
    wide = x.new_zeros(*x.shape[:-2], rows, columns)
    wide[..., :: steps[0], :: steps[1]] = x
    return wide


def exact(net: DeployedNet, node: Node, sums: Tensor) -> Tensor:
    """Sums of codes as integers: a GPU may multiply by the fractions of Winograd's transform, and be off by 1e-5."""
    return sums.round_() if sums.is_cuda and node["name"] in net.on_codes else sums


def behind(net: DeployedNet, node: Node, sums: Tensor, raw: Tensor | None = None) -> Tensor:
    """All that follows the sums of a convolution. raw: what it reads, not quantized, for XNOR-Net's K."""
    y = scaled(net, node, sums, None if raw is None else input_scale(node, raw))
    activation = ACTIVATIONS[node["activation"]]
    return y if activation is None else activation.compute(net, node, y)


def scaled(net: DeployedNet, node: Node, sums: Tensor, scale: Tensor | None = None) -> Tensor:
    """Sums, in place, times what they are worth, plus the bias. scale: XNOR-Net's K in between."""
    factor, bias = net.held(node, "factor"), net.held(node, "bias")
    shape = (-1, *[1] * (sums.dim() - 2))
    if factor is not None:
        # In place, also where sums are int32: fresh memory would cost as much again.
        sums = torch.mul(sums, factor.view(shape), out=sums.view(factor.dtype))
    y = sums if scale is None else sums.mul_(scale)
    return y if bias is None else y.add_(bias.view(shape))


def input_scale(node: Node, raw: Tensor) -> Tensor:
    """The mean magnitude of what each position saw, per group of channels."""
    outputs, inputs, size, _ = node["shape"]
    magnitude = raw.abs().unflatten(1, (node["groups"], inputs)).mean(2)
    scale = F.avg_pool2d(magnitude, size, node["stride"], node["padding"])
    return scale if node["groups"] == 1 else scale.repeat_interleave(outputs // node["groups"], 1)
