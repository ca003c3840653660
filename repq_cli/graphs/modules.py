"""Which module of torch's does what a function or a tensor's method does."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx, nn

from repq_cli.graphs.computed import ComputedConv
from repq_cli.graphs.trace import Traced

ACTIVATIONS: dict[str, Callable[..., nn.Module]] = {
    "relu": nn.ReLU,
    "relu_": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardtanh": nn.Hardtanh,
    "hardtanh_": nn.Hardtanh,
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
    "sigmoid": nn.Sigmoid,
    "sigmoid_": nn.Sigmoid,
    "tanh": nn.Tanh,
    "tanh_": nn.Tanh,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
    "leaky_relu_": nn.LeakyReLU,
    "mish": nn.Mish,
    "softplus": nn.Softplus,
    "softmax": nn.Softmax,
    "pixel_shuffle": nn.PixelShuffle,
    "channel_shuffle": nn.ChannelShuffle,
}
PADS: dict[str, Callable[..., nn.Module]] = {
    "zeros": nn.ZeroPad2d,
    "reflect": nn.ReflectionPad2d,
    "replicate": nn.ReplicationPad2d,
    "circular": nn.CircularPad2d,
}


def word_of(node: fx.Node) -> str:
    """The name of the function or method that a node calls; empty for a module."""
    if node.op == "call_module":
        return ""
    return str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")


def unlike_in_place(module: nn.Module) -> nn.Module:
    """The module, or its like that does not write into what it reads."""
    if not getattr(module, "inplace", False):
        return module
    found = copy.copy(module)
    found.inplace = False  # type: ignore[assignment]
    return found


def module_for(word: str, arguments: Arguments, shared: dict[Any, nn.Module]) -> list[nn.Module] | None:
    """The modules that, one behind the other, do what a call of one tensor does; None where there are none.

    shared: those that were made so far of parameters, which a second call shares.
    """
    node = arguments.node
    if word in ACTIVATIONS:
        options = {key: value for key, value in node.kwargs.items() if key not in ("inplace", "input", "_stacklevel")}
        if any(isinstance(value, fx.Node) for value in (*node.args[1:], *options.values())):
            return None
        options.pop("dtype", None)
        return [ACTIVATIONS[word](*_without_flags(node.args[1:]), **options)]
    makers: dict[str, Callable[[], list[nn.Module] | None]] = {
        "clamp": lambda: _clamp(arguments),
        "clamp_": lambda: _clamp(arguments),
        "mean": lambda: _mean(arguments),
        "adaptive_avg_pool2d": lambda: [nn.AdaptiveAvgPool2d(arguments.plain(1, "output_size"))],
        "avg_pool2d": lambda: _avg_pool(arguments),
        "max_pool2d": lambda: [nn.MaxPool2d(*arguments.pooling())],
        "interpolate": lambda: _upsample(arguments),
        "pad": lambda: _pad(arguments),
        "batch_norm": lambda: _batch_norm(arguments, shared),
        "conv2d": lambda: _convolution(arguments, shared),
        "linear": lambda: _linear(arguments, shared),
    }
    make = makers.get(word)
    return None if make is None else make()


def _without_flags(args: tuple[Any, ...]) -> list[Any]:
    """Positional arguments of a function of torch's, which may end with ``inplace``."""
    return [value for value in args if not isinstance(value, bool)]


class Arguments:
    """What a function was called with, by place or by name.

    constants: modules that compute those of its arguments that depend on parameters alone.
    """

    def __init__(self, node: fx.Node, traced: Traced, constants: Mapping[fx.Node, nn.Module]) -> None:
        self.node, self.traced, self.constants = node, traced, constants

    def get(self, place: int, name: str, default: Any = None) -> Any:
        return self.node.args[place] if place < len(self.node.args) else self.node.kwargs.get(name, default)

    def plain(self, place: int, name: str, default: Any = None) -> Any:
        found = self.get(place, name, default)
        return tuple(found) if isinstance(found, list | tuple) else found

    def parameter(self, place: int, name: str) -> tuple[str, Any]:
        """The owner's name and the tensor of an argument that is a parameter or buffer itself."""
        found = self.get(place, name)
        if not isinstance(found, fx.Node) or found.op != "get_attr":
            return "", None
        path, _, attribute = str(found.target).rpartition(".")
        return path, getattr(self.traced.net.get_submodule(path), attribute)

    def constant(self, place: int, name: str) -> tuple[nn.Module | None, tuple[int, ...]]:
        """The module that computes an argument, and that one's shape."""
        found = self.get(place, name)
        return (self.constants[found], self.traced.shape(found)) if found in self.constants else (None, ())

    def is_absent(self, place: int, name: str) -> bool:
        return self.get(place, name) is None

    def pooling(self) -> list[Any]:
        size = self.plain(1, "kernel_size")
        stride = self.plain(2, "stride") or size
        rest = (self.plain(3, "padding", 0), self.plain(4, "dilation", 1), False, self.plain(5, "ceil_mode", False))
        return [size, stride, *rest]

    @property
    def shape(self) -> tuple[int, ...]:
        source = self.node.all_input_nodes[0]
        return self.traced.shape(source)


def _clamp(arguments: Arguments) -> list[nn.Module] | None:
    low, high = arguments.get(1, "min"), arguments.get(2, "max")
    if low == 0:
        return [nn.ReLU()] if high is None else [nn.ReLU6()] if high == 6 else None
    return [nn.Hardtanh(low, high)] if isinstance(low, int | float) and isinstance(high, int | float) else None


def _mean(arguments: Arguments) -> list[nn.Module] | None:
    dims = arguments.plain(1, "dim")
    dims = (dims,) if isinstance(dims, int) else dims
    if len(arguments.shape) != 4 or dims is None or {dim % 4 for dim in dims} != {2, 3}:
        return None
    pool: list[nn.Module] = [nn.AdaptiveAvgPool2d(1)]
    return pool if arguments.get(2, "keepdim", False) else [*pool, nn.Flatten(1)]


def _avg_pool(arguments: Arguments) -> list[nn.Module]:
    size = arguments.plain(1, "kernel_size")
    rows, columns = (size, size) if isinstance(size, int) else size
    if (rows, columns) == arguments.shape[2:]:
        return [nn.AdaptiveAvgPool2d(1)]
    stride = arguments.plain(2, "stride") or size
    rest = arguments.plain(3, "padding", 0), arguments.get(4, "ceil_mode", False)
    return [
        nn.AvgPool2d(
            size, stride, *rest, arguments.get(5, "count_include_pad", True), arguments.get(6, "divisor_override")
        )
    ]


def _upsample(arguments: Arguments) -> list[nn.Module] | None:
    before, after = arguments.shape, arguments.traced.shape(arguments.node)
    mode, corners = arguments.get(3, "mode", "nearest"), arguments.get(4, "align_corners")
    if len(before) != 4 or arguments.get(6, "antialias", False):
        return None
    factors = [new // old if new % old == 0 else 0 for old, new in zip(before[2:], after[2:], strict=True)]
    if factors[0] == factors[1] > 0:
        return [nn.Upsample(scale_factor=factors[0], mode=mode, align_corners=corners)]
    return [nn.Upsample(size=after[2:], mode=mode, align_corners=corners)]


def _pad(arguments: Arguments) -> list[nn.Module] | None:
    around, mode, value = arguments.plain(1, "pad"), arguments.get(2, "mode", "constant"), arguments.get(3, "value", 0)
    if len(around) != 4 or min(around) < 0 or (mode == "constant" and value not in (0, None)):
        return None
    return [PADS["zeros" if mode == "constant" else mode](around)] if any(around) else []


def padded_in_front(conv: nn.Conv2d) -> tuple[nn.Module, nn.Conv2d]:
    """A convolution that pads with other than zeros as a pad and the convolution without one."""
    found = copy.copy(conv)
    found.padding, found.padding_mode = (0, 0), "zeros"
    return PADS[conv.padding_mode](tuple(conv._reversed_padding_repeated_twice)), found


def _batch_norm(arguments: Arguments, shared: dict[Any, nn.Module]) -> list[nn.Module] | None:
    owner, mean = arguments.parameter(1, "running_mean")
    _, var = arguments.parameter(2, "running_var")
    if not isinstance(mean, Tensor) or not isinstance(var, Tensor) or len(arguments.shape) != 4:
        return None
    key = ("norm", owner)
    if key not in shared:
        module = arguments.traced.net.get_submodule(owner)
        weight, bias = arguments.parameter(3, "weight")[1], arguments.parameter(4, "bias")[1]
        count, eps = getattr(module, "num_batches_tracked", None), arguments.get(7, "eps", 1e-5)
        shared[key] = norm_of(module, weight, bias, mean, var, count, eps)
    return [shared[key]]


def complete_norm(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """The batch norm, or one with its statistics that has a scale and shift, which are not trained."""
    return norm if norm.affine and norm.momentum is not None else norm_like(norm)


def norm_like(norm: nn.modules.batchnorm._BatchNorm) -> nn.BatchNorm2d:
    """A batch norm of maps with the tensors of any other."""
    assert norm.running_mean is not None and norm.running_var is not None
    return norm_of(norm, norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.num_batches_tracked)


def norm_of(
    module: nn.Module, weight: Any, bias: Any, mean: Tensor, var: Tensor, count: Any, eps: float | None = None
) -> nn.BatchNorm2d:
    """A batch norm of maps with these tensors; ``module``, that they are of, says what else a batch norm has."""
    like: Any = module
    momentum = getattr(module, "momentum", None) or 0.1
    norm = nn.BatchNorm2d(len(mean), like.eps if eps is None else eps, momentum, device="meta")
    ones = nn.Parameter(mean.new_ones(len(mean)), requires_grad=False)
    norm.weight = ones if weight is None else weight
    norm.bias = nn.Parameter(mean.new_zeros(len(mean)), requires_grad=False) if bias is None else bias
    norm.running_mean, norm.running_var = mean, var
    norm.num_batches_tracked = mean.new_zeros((), dtype=int) if count is None else count  # type: ignore[call-overload]
    return norm.train(module.training)


def _convolution(arguments: Arguments, shared: dict[Any, nn.Module]) -> list[nn.Module] | None:
    owner, weight = arguments.parameter(1, "weight")
    _, bias = arguments.parameter(2, "bias")
    if bias is None and not arguments.is_absent(2, "bias"):
        return None
    stride, padding = arguments.plain(3, "stride", 1), arguments.plain(4, "padding", 0)
    dilation, groups = arguments.plain(5, "dilation", 1), arguments.get(6, "groups", 1)
    walk: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    key = ("conv", owner or arguments.get(1, "weight"), *walk.values())
    if weight is None:
        made, shape = arguments.constant(1, "weight")
        if made is None or len(shape) != 4:
            return None
        shared.setdefault(key, ComputedConv(made, shape, bias, **walk))
    elif key not in shared:
        inputs, outputs, size = weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:])
        conv = nn.Conv2d(inputs, outputs, size, stride, padding, dilation, groups, bias is not None, device="meta")
        conv.weight = weight
        if bias is not None:
            conv.bias = bias
        shared[key] = conv
    return [shared[key]]


def _linear(arguments: Arguments, shared: dict[Any, nn.Module]) -> list[nn.Module] | None:
    owner, weight = arguments.parameter(1, "weight")
    _, bias = arguments.parameter(2, "bias")
    if weight is None or (bias is None and not arguments.is_absent(2, "bias")):
        return None
    key = ("linear", owner)
    if key not in shared:
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
        linear.weight = weight
        if bias is not None:
            linear.bias = bias
        shared[key] = linear
    return [shared[key]]
