"""The operations of a traced network in few words: torch's modules where there is one, else functions.

Functions that a module of torch's carries out become that module, whatever calls them; operations that do nothing in
eval mode disappear; products and sums with constants become ``Scale`` and ``Shift``.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from repq_cli.graphs.modules import Arguments, module_for, norm_like, padded_in_front, unlike_in_place, word_of
from repq_cli.graphs.moves import reshaping
from repq_cli.graphs.program import Operation, Program, Ref, wanted
from repq_cli.graphs.tokens import with_tokens_as_maps
from repq_cli.graphs.trace import Traced
from repq_cli.graphs.transposed import with_transposed_layers
from repq_cli.graphs.vectors import with_normed_vectors_as_maps
from repq_cli.quant.float_leaf import FloatLeaf
from repq_cli.reparam.expression import Scale, Shift

NOTHING = {"contiguous", "clone", "detach", "dropout", "dropout2d", "feature_dropout", "alpha_dropout", "float", "to"}
CHECKS = {"_assert"}
WITH_PARAMETERS = {"conv2d", "batch_norm", "linear"}  # are called in the module that holds these
SUMS = {"add": "add", "iadd": "add", "add_": "add", "sub": "sub", "isub": "sub", "sub_": "sub", "subtract": "sub"}
PRODUCTS = {"mul", "imul", "mul_", "multiply"}
QUOTIENTS = {"truediv", "div", "div_", "itruediv", "divide"}


def operations_of(traced: Traced) -> Program:
    """The program of a traced network; its modules are those of ``traced.net``, or new ones with their parameters."""
    return with_transposed_layers(with_tokens_as_maps(with_normed_vectors_as_maps(_Reader(traced).program())))


class _Reader:
    """Translates node by node."""

    def __init__(self, traced: Traced) -> None:
        self.traced = traced
        self.operations: dict[str, Operation] = {}
        self.names: dict[fx.Node, str] = {}  # of what stands for each node's output
        self.constants: set[fx.Node] = set()
        self.shared: dict[Any, nn.Module] = {}  # modules made of functions that name parameters
        self.shapes: dict[str, tuple[int, ...]] = {}

    def program(self) -> Program:
        source, outputs = "", None
        for node in self.traced.graph.nodes:
            if node.op == "placeholder":
                source = node.name
                self.names[node], self.shapes[source] = source, self.traced.shape(node)
            elif node.op == "output":
                outputs = self._argument(node.args[0])
            elif self._is_constant(node):
                self.constants.add(node)
            else:
                self._read(node)
        return Program(
            source, self.shapes[source], wanted(self.operations, outputs), outputs, self.traced.net, self.traced.leaves
        )

    def _is_constant(self, node: fx.Node) -> bool:
        if node.op == "get_attr":
            return True
        leaf = node.op == "call_module" and str(node.target) in self.traced.leaves
        return isinstance(self.traced.values[node], Tensor) and set(node.all_input_nodes) <= self.constants and not leaf

    def _constants_of(self, node: fx.Node, word: str) -> list[fx.Node]:
        """What a convolution reads that is computed of parameters."""
        inputs = node.all_input_nodes if word == "conv2d" else []
        return [other for other in inputs if other in self.constants and other.op != "get_attr"]

    def _argument(self, argument: Any) -> Any:
        def translated(node: fx.Node) -> Any:
            return Ref(self._computed(node) if node in self.constants else self.names[node])

        found = fx.node.map_arg(argument, translated)
        return _plain(found)

    def _computed(self, node: fx.Node) -> str:
        """An operation of its own that gives a constant, for those that take one as a tensor."""
        if node not in self.names:
            name = self.names[node] = f"{node.name}_constant"
            self.shapes[name] = self.traced.shape(node)
            self.operations[name] = Operation(name, self._constant(node), (), shape=self.shapes[name])
        return self.names[node]

    def _constant(self, node: fx.Node) -> nn.Module:
        """A module without arguments that computes what depends on parameters and numbers alone."""
        if node not in self.shared:
            graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()

            def copied(source: fx.Node) -> fx.Node:
                if source not in copies:
                    for before in source.all_input_nodes:
                        copied(before)
                    copies[source] = graph.node_copy(source, lambda other: copies[other])
                return copies[source]

            graph.output(copied(node))
            self.shared[node] = fx.GraphModule(self.traced.net, graph)
        return self.shared[node]

    def _read(self, node: fx.Node) -> None:
        word = word_of(node)
        if word in CHECKS:
            return
        path = str(node.target) if node.op == "call_module" else _called_in(node)
        shape = self.traced.shape(node)
        if node.op == "call_module":
            module = self.traced.net.get_submodule(path)
            if _does_nothing(module) and path not in self.traced.leaves:
                self.names[node] = self.names[node.args[0]]  # type: ignore[index]
                return
            if path in self.traced.leaves:
                args, kwargs = self._argument(node.args), self._argument(node.kwargs)
                self._add(node, FloatLeaf(module), args, path, kwargs=kwargs)
            else:
                first = self.names[node.all_input_nodes[0]]
                if type(module) is nn.Conv2d and module.padding_mode != "zeros":
                    pad, module = padded_in_front(module)
                    images = torch.empty(self.shapes[first], device="meta")
                    first = self._add(node, pad, (Ref(first),), f"{path}.pad", shape=tuple(pad(images).shape))
                elif isinstance(module, nn.SyncBatchNorm) and module.running_mean is not None and len(shape) == 4:
                    module = self.shared.setdefault(("norm", path), norm_like(module))
                self._add(node, unlike_in_place(module), (Ref(first),), path)
            return
        sources = [source for source in node.all_input_nodes if source not in self.constants]
        first = self.names[sources[0]] if sources else ""
        if not sources or (word in NOTHING and self.shapes.get(first) == shape):
            self.names[node] = first
            return
        if self._with_constant(node, word, path) or self._reshaped(node, word, path):
            return
        given = Arguments(node, self.traced, {other: self._constant(other) for other in self._constants_of(node, word)})
        found = module_for(word, given, self.shared) if len(sources) == 1 else None
        if found is not None:
            path = path if word in WITH_PARAMETERS else ".".join(filter(None, (path, word)))
            self._add_all(node, found, first, path)
            return
        target = node.target
        if word in SUMS and len(sources) == 2 and not node.kwargs:
            target = operator.add if SUMS[word] == "add" else operator.sub
        elif word in PRODUCTS and len(sources) == 2:
            target = operator.mul
        self._add(node, target, self._argument(node.args), path, kwargs=self._argument(node.kwargs))

    def _add(
        self,
        node: fx.Node,
        target: Any,
        args: Any,
        path: str,
        *,
        kwargs: dict[str, Any] | None = None,
        shape: tuple[int, ...] = (),
    ) -> str:
        """One operation, the node's last; one with a ``shape`` of its own does a part of what the node does."""
        last = not shape
        name = node.name if last else f"{node.name}_{len(self.operations)}"
        shape = shape or self.traced.shape(node)
        self.operations[name] = Operation(name, target, tuple(args), kwargs or {}, path, shape)
        self.shapes[name] = shape
        if last:
            self.names[node] = name
        return name

    def _with_constant(self, node: fx.Node, word: str, path: str) -> bool:
        """A sum, difference, product or quotient with something that no image changes."""
        kind = SUMS.get(word) or ("mul" if word in PRODUCTS else "div" if word in QUOTIENTS else None)
        operands: list[Any] = list(node.args[:2])
        if word == "neg":
            kind, operands = "mul", [node.args[0], -1.0]
        if kind is None or len(operands) != 2 or set(node.kwargs) - {"alpha"} or node.kwargs.get("alpha", 1) != 1:
            return False
        is_tensor = [isinstance(value, fx.Node) and value not in self.constants for value in operands]
        if sum(is_tensor) != 1:
            return False
        place = is_tensor.index(True)
        source, constant = operands[place], operands[1 - place]
        if isinstance(constant, fx.Node):
            if not _per_channel(self.traced.values[constant].shape, self.traced.shape(source)) or kind in (
                "sub",
                "div",
            ):
                return False
            value: Any = self._constant(constant)
        else:
            value = float(constant)
        first: Any = Ref(self.names[source])
        reversed_ = place == 1
        if kind in ("add", "sub"):
            if kind == "sub" and reversed_:
                first = Ref(self._add(node, Scale(-1.0), (first,), path, shape=self.shapes[first.name]))
            elif kind == "sub":
                value = -value
            if value == 0.0 and not (kind == "sub" and reversed_):
                self.names[node] = first.name
            else:
                self._add(node, Shift(value), (first,), path)
            return True
        if kind == "div":
            if reversed_:
                return False
            value = 1 / value
        if isinstance(value, float) and value == 1.0:
            self.names[node] = first.name
        else:
            self._add(node, Scale(value), (first,), path)
        return True

    def _reshaped(self, node: fx.Node, word: str, path: str) -> bool:
        """Operations that only give a tensor another shape, or change the order of channels."""
        if node.op == "call_module" or not node.args or not isinstance(node.args[0], fx.Node):
            return False
        found = reshaping(node, word, self.traced)
        if found is None:
            return False
        source, does = found
        if isinstance(does, tuple):
            self._add(node, "reshape", (Ref(self.names[source]), *does), path)
        else:
            self._add_all(node, does, self.names[source], path)
        return True

    def _add_all(self, node: fx.Node, modules: Sequence[nn.Module], first: str, path: str) -> None:
        """Modules one behind the other; none where the node's output is what it reads."""
        self.names[node] = first
        for number, module in enumerate(modules, 1):
            shape = (
                () if number == len(modules) else tuple(module(torch.empty(self.shapes[first], device="meta")).shape)
            )
            first = self._add(node, module, (Ref(first),), path, shape=shape)


def _does_nothing(module: nn.Module) -> bool:
    dropping = isinstance(module, nn.Dropout | nn.Dropout2d) and module.p == 0
    return type(module) is nn.Identity or dropping


def _called_in(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    return str(next(reversed(stack.values()))[0]) if stack else ""


def _per_channel(constant: torch.Size, shape: tuple[int, ...]) -> bool:
    """Whether a constant of that shape is one number, or one for each channel of a map."""
    if math.prod(constant) == 1:
        return True
    return len(shape) == 4 and len(constant) in (3, 4) and constant[-3] == math.prod(constant) == shape[1]


def _plain(argument: Any) -> Any:
    """Without fx's own kinds of lists; the number of images that were traced is any."""
    if isinstance(argument, Ref):
        return argument
    if isinstance(argument, tuple | list):
        values = [_plain(value) for value in argument]
        return tuple(values) if isinstance(argument, tuple) else values
    if isinstance(argument, dict):
        return {key: _plain(value) for key, value in argument.items()}
    return argument
