"""The operations of any network's forward pass, with the shapes that they have for an example."""

from __future__ import annotations

import copy
import functools
import inspect
import operator
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, fx, nn

from repq_cli.errors import ConfigError
from repq_cli.graphs.writes import Writes
from repq_cli.quant.float_leaf import FloatLeaf

BATCH = 7  # images that are traced: a number that no layer is likely to have for another reason


class Traced:
    """``net``: a copy in eval mode whose modules ``graph`` names; ``values``: what each node gives, without data.

    leaves: the modules that were not looked into, by name.
    """

    def __init__(self, net: nn.Module, graph: fx.Graph, values: dict[fx.Node, Any], leaves: frozenset[str]) -> None:
        self.net, self.graph, self.values, self.leaves = net, graph, values, leaves

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Of a tensor; empty for anything else."""
        value = self.values.get(node)
        return tuple(value.shape) if isinstance(value, Tensor) else ()


def trace(net: nn.Module, example: Tensor, leaf: Callable[[str], bool] = lambda name: False) -> Traced:
    """Follow ``net``, in eval mode, with inputs like ``example`` ``[B, C, H, W]``; ``net`` stays as it is.

    leaf: which modules, by name, may be left as they are where they cannot be followed. Raises ConfigError, with the
    innermost module's name, where that is none of them.
    """
    copied = copy.deepcopy(net).eval()
    # Without data at first. That does not do with tensors that are neither parameter nor buffer, nor with what looks
    # at values, which is told, or left as it is, below.
    with suppress(Exception):
        return _followed(copied, _Tracer(set(), example.to("meta")), without_data(copied))
    leaves: set[str] = set()
    while True:
        tracer = _Tracer(leaves, example)
        try:
            return _followed(copied, tracer, copied)
        except _DoesNotRunError as error:
            size, where = "x".join(map(str, example.shape[1:])), _where(copied, tracer.innermost)
            raise ConfigError(f"{where} fails for images of {size} ({error}): give the size that it is for.") from error
        except Exception as error:  # whatever a forward pass does with a stand-in for a tensor
            path = tracer.innermost
            inside = [".".join(path.split(".")[: end + 1]) for end in range(path.count(".") + 1)] if path else []
            allowed = next((name for name in reversed(inside) if leaf(name) and name not in leaves), None)
            if allowed is None:
                raise _cannot_follow(copied, path, error) from error
            leaves.add(allowed)


Net = TypeVar("Net", bound=nn.Module)


def without_data(net: Net) -> Net:
    """A copy with tensors of its shapes on the device ``meta``."""
    tensors = [*net.parameters(), *net.buffers()]
    shapes = [tensor.detach().to("meta") for tensor in tensors]
    kept = [
        nn.Parameter(shape, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else shape
        for tensor, shape in zip(tensors, shapes, strict=True)
    ]
    return copy.deepcopy(net, {id(tensor): shape for tensor, shape in zip(tensors, kept, strict=True)})


def _followed(net: nn.Module, tracer: _Tracer, root: nn.Module) -> Traced:
    """What becomes of ``net`` where ``root``, which has its names, is followed."""
    graph = tracer.trace(root)
    try:
        tracer.writes.redirect_readers(graph)
    except ValueError:
        tracer.innermost = tracer.writes.place
        raise
    for node in graph.nodes:
        if node.op == "get_attr":  # what a forward pass makes anew has no value without data
            _attribute(net, str(node.target))
    return Traced(net, graph, tracer.values, frozenset(tracer.leaves))


def _cannot_follow(net: nn.Module, path: str, error: Exception) -> ConfigError:
    said = str(error).partition("\n")[0] or type(error).__name__
    where = _where(net, path)
    way_out = f"keep_float=['{path}'] leaves it as it is, in floating point" if path else "take that part out of it"
    return ConfigError(f"The forward pass cannot be followed in {where}: {said}. {way_out}.")


def _where(net: nn.Module, path: str) -> str:
    """A module for people."""
    return f"{path} ({type(net.get_submodule(path)).__name__})" if path else type(net).__name__


class _DoesNotRunError(Exception):
    """An operation fails for images like the example, as it would without us."""


class _Known(fx.Proxy):
    """A stand-in for a tensor that knows its shape, dtype and device, so that code may decide by them."""

    @property
    def known(self) -> Any:
        """What it stands for."""
        return cast("_Tracer", self.tracer).values[self.node]

    def size(self, dim: int | None = None) -> Any:
        return self.known.size() if dim is None else self.known.size(dim)

    def dim(self) -> int:
        return self.known.dim()

    def numel(self) -> int:
        return self.known.numel()

    def __len__(self) -> int:
        return len(self.known)

    def __index__(self) -> int:
        return self.known.__index__()

    def _written(self, function: Callable[..., Any], other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    def __iadd__(self, other: Any) -> Any:
        return self._written(operator.iadd, other)

    def __isub__(self, other: Any) -> Any:
        return self._written(operator.isub, other)

    def __imul__(self, other: Any) -> Any:
        return self._written(operator.imul, other)

    def __itruediv__(self, other: Any) -> Any:
        return self._written(operator.itruediv, other)

    def __setitem__(self, place: Any, value: Any) -> None:
        raise ValueError("it writes into a part of a tensor, for which torch.cat and torch.where are")

    def __getattr__(self, name: str) -> Any:
        if name in ("shape", "ndim", "dtype", "device", "is_cuda", "requires_grad", "training"):
            return getattr(self.known, name)
        return super().__getattr__(name)


class _Tracer(fx.Tracer):
    """Carries each operation out while it writes it down, on the device of the example: ``meta`` computes nothing."""

    def __init__(self, leaves: Collection[str], example: Tensor) -> None:
        super().__init__()
        self.leaves, self.values, self.innermost = leaves, dict[fx.Node, Any](), ""
        self.running = False  # whether an operation is carried out rather than written down
        self.images = example[:1].expand(BATCH, *example.shape[1:]).clone()  # what is written into one is its own
        self.writes = Writes(self.values)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Torch's own layers, also as classes derived from them that leave their forward as it is."""
        if module_qualified_name in self.leaves:
            return True
        forward = inspect.unwrap(type(m).forward)
        own = str(getattr(forward, "__module__", "")).startswith("torch.nn.modules")
        return own and not isinstance(m, nn.Sequential | nn.ModuleList | nn.ModuleDict)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self.running:
            return forward(*args, **kwargs)
        try:
            self._refuse_hooks(m)
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.innermost = self.innermost or self.path_of_module(m)
            raise

    def _refuse_hooks(self, m: nn.Module) -> None:
        """ValueError for a layer that does more than its class says."""
        path = self.path_of_module(m)
        if (m._forward_hooks or m._forward_pre_hooks) and path not in self.leaves and self.is_leaf_module(m, path):
            raise ValueError(
                "it has hooks on its forward pass, which no graph has; torch.nn.utils.weight_norm has none in "
                "torch.nn.utils.parametrizations"
            )

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """As fx's own, which walks over the whole network for each parameter that is asked for."""
        name = self.names.get(id(attr_val)) if isinstance(attr_val, nn.Parameter) and not self.running else None
        if name is None:
            return attr_val
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]

    def create_arg(self, a: Any) -> Any:
        """As fx's own, without a walk for each buffer."""
        name = self.names.get(id(a)) if isinstance(a, Tensor) else None
        return super().create_arg(a) if name is None else self.create_node("get_attr", name, (), {})

    @functools.cached_property
    def names(self) -> dict[int, str]:
        """Of the network's parameters and buffers."""
        return {id(tensor): name for name, tensor in (*self.root.named_buffers(), *self.root.named_parameters())}

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """One input, the images; all other arguments have their defaults."""
        return root_fn, [self.root, self.create_proxy("placeholder", "x", (), {})]

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Known(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *others: Any, **more: Any) -> Any:
        proxy = super().create_proxy(kind, target, args, kwargs, *others, **more)
        node = proxy.node
        if kind == "placeholder":
            self.values[node] = self.images
        elif kind != "output":
            given = fx.node.map_arg((node.args, node.kwargs), self._value_of)
            self.running = True
            try:
                with torch.no_grad(), self.writes.watched(node):
                    self.values[node] = self._value(kind, target, *given)
            except (RuntimeError, ValueError) as error:
                raise _DoesNotRunError(str(error).partition("\n")[0]) from error
            self.running = False
        return proxy

    def _value_of(self, node: fx.Node) -> Any:
        if node not in self.values:  # a buffer, for which no stand-in is made
            self.running = True
            self.values[node] = _attribute(self.root, str(node.target))
            self.running = False
        return self.values[node]

    def _value(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        if kind == "get_attr":
            return _attribute(self.root, target)
        if kind == "call_module":
            module = self.root.get_submodule(target)
            return (FloatLeaf(module) if target in self.leaves else module)(*args, **kwargs)
        if kind == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        return target(*args, **kwargs)

    def to_bool(self, obj: fx.Proxy) -> bool:
        value = self.values[obj.node]
        if isinstance(value, Tensor):
            raise ValueError("it decides by the values of tensors")
        return bool(value)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        value = self.values[obj.node]
        return iter(
            [self.create_proxy("call_function", operator.getitem, (obj, index), {}) for index in range(len(value))]
        )


def _attribute(net: nn.Module, path: str) -> Any:
    found: Any = net
    for name in path.split("."):
        found = getattr(found, name)
    return found
