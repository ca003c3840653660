"""From the operations of a network's forward pass to the nodes of a deployed one.

What becomes of a module or a function is registered by ``form`` beside its operation. A form is called with the
``Call`` and then as the module's forward or the function itself was, tensors being ``Ref``; it emits nodes and returns
what the call gives: a ``Ref``, several, or a number that is known beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from repq_cli.answers import leaves
from repq_cli.deploy.simplify import simplified
from repq_cli.quant.float_leaf import FloatLeaf
from repq_cli.quant.frozen_layers import frozen_layers

Node = dict[str, Any]
Form = Callable[..., Any]
FORMS: dict[Any, Form] = {}
IMAGES = 2  # of the run that tells sizes: a size of 1 is then no number of images


class RefusedError(ValueError):
    """Why something has no deployed form, as a sentence."""


class Refusal(NamedTuple):
    """A step without a deployed form. name: a module's path, or the step's; kind: its class or function."""

    name: str
    kind: str
    reason: str


def together(reasons: Sequence[str]) -> str:
    """All reasons as one text; what modules may be instead, once."""
    if not any(reason.endswith("has no deployed form.") for reason in reasons):
        return " ".join(reasons)
    legal = sorted({found.__name__ for found in FORMS if isinstance(found, type) and issubclass(found, nn.Module)})
    return " ".join([*reasons, f"Modules that have one: {', '.join(legal)}."])


@dataclass(frozen=True)
class Ref:
    """A tensor of the deployed network, by the name of the node that gives it.

    is_refused: nothing gives it, being behind a step that was refused.
    """

    name: str
    is_refused: bool = False


def plain(sizes: int | Sequence[int]) -> int | list[int]:
    """Sizes as files have them: one number where it says all."""
    if isinstance(sizes, int):
        return sizes
    return sizes[0] if len(set(sizes)) == 1 else list(sizes)


def form(*kinds: Any) -> Callable[[Form], Form]:
    """What becomes of modules of these classes, of calls of these functions, of methods of tensors by these names.

    The form of a module gets the module before its inputs. A class of ours stands for those derived from it, too,
    unless they are registered themselves; one of torch's for itself alone.
    """

    def register(function: Form) -> Form:
        FORMS.update(dict.fromkeys(kinds, function))
        return function

    return register


class Conversion:
    """What becomes of a traced network: nodes and tensors, or all refusals at once.

    nodes      the deployed network's, in order
    stored     their tensors, by the name that nodes say
    source     what the image is called, and ``output`` what the network gives: a name, or lists and dicts of names
    became     the operations that each step became, none where it does nothing
    refused    steps without a deployed form, each with its refusal
    """

    def __init__(
        self,
        net: nn.Module,
        graph: fx.Graph,
        input_shape: Sequence[int] | None = None,
        known: tuple[type[nn.Module], ...] = (),
    ) -> None:
        """``known``: modules that are taken as they are, since something will be made of them later."""
        self.net, self.graph, self.input_shape, self.known = net, graph, input_shape, known
        self.nodes: list[Node] = []
        self.stored: dict[str, Tensor] = {}
        self.became: dict[fx.Node, list[str]] = {}
        self.refused: dict[fx.Node, Refusal] = {}
        self.source: str | None = None
        self.output: Any = None
        self._values: dict[fx.Node, Any] = {}
        self._makers: dict[str, fx.Node] = {}
        self._seen: dict[fx.Node, Any] | None = None
        for step in graph.nodes:
            before = len(self.nodes)
            call = Call(self, step)
            try:
                self._values[step] = self._converted(step, call)
            except ValueError as error:
                self.refused[step] = Refusal(call.where, call.kind, str(error))
                self._values[step] = Ref(step.name, is_refused=True)
            if isinstance(self._values[step], Ref):
                self._makers.setdefault(self._values[step].name, step)
            self.became[step] = [node["op"] for node in self.nodes[before:]]
        self.nodes = simplified(self.nodes, list(leaves(self.output)))
        read = {value for node in self.nodes for value in node.values() if isinstance(value, str)}
        self.stored = {name: tensor for name, tensor in self.stored.items() if name in read}

    @property
    def refusals(self) -> list[Refusal]:
        """All of them, in order."""
        return list(self.refused.values())

    def _converted(self, step: fx.Node, call: Call) -> Any:
        args: tuple[Any, ...] = map_arg(step.args, lambda node: self._values[node])
        kwargs: dict[str, Any] = map_arg(step.kwargs, lambda node: self._values[node])
        if step.op == "placeholder":
            return self._placeholder(step)
        if step.op == "output":
            self.output = _names(args[0])
            return None
        if step.op == "get_attr":
            return _attribute(self.net, str(step.target))
        if step.op == "call_module" and isinstance(call.module, self.known):
            return Ref(step.name)
        if step.op == "call_function" and not list(_refs((args, kwargs))):
            assert callable(step.target)
            return step.target(*args, **kwargs)  # arithmetic of sizes
        form = call.form(call.module if step.op == "call_module" else step.target)
        if any(ref.is_refused for ref in _refs((args, kwargs))):
            return Ref(step.name, is_refused=True)
        return form(call, call.module, *args, **kwargs) if step.op == "call_module" else form(call, *args, **kwargs)

    def _placeholder(self, step: fx.Node) -> Any:
        if self.source is None:
            self.source = step.name
            return Ref(step.name)
        if step.args:
            return step.args[0]  # a default
        raise RefusedError(f"The network's input {step.target} is a second one: a deployed network reads one tensor.")

    def sizes(self, step: fx.Node) -> Any:
        """What a step gives for two images, tensors as their sizes; RefusedError where the image's size isn't known."""
        if self._seen is None:
            if self.input_shape is None:
                raise RefusedError("Its sizes follow the image's, which nobody has said: give an example.")
            self._seen = _sizes(self.net, self.graph, self.input_shape)
        return self._seen[step]

    def made_by(self, ref: Ref) -> fx.Node:
        """The step that gives a tensor."""
        return self._makers[ref.name]


class Call:
    """One step of a traced network: what it may emit, store and ask.

    path   of the module, or the step's name
    where  the same for people: of a function, the module that calls it
    kind   its class or function, for people
    """

    def __init__(self, conversion: Conversion, step: fx.Node) -> None:
        self.conversion, self.step = conversion, step
        is_module = step.op == "call_module"
        self.module = conversion.net.get_submodule(str(step.target)) if is_module else nn.Identity()
        self.path = str(step.target) if is_module else step.name
        self.where = self.path if is_module else _calling_module(step) or step.name
        self.kind = type(self.module).__name__ if is_module else _word(step.target)
        self._emitted = 0

    def form(self, kind: Any) -> Form:
        """The registered form of a module, a function or a method's name; RefusedError where there is none."""
        if isinstance(kind, FloatLeaf):
            raise RefusedError(
                f"{self.where} ({type(kind.module).__name__}) is kept in floating point because its forward pass "
                f"cannot be followed, so that it trains but cannot be shipped: write it without decisions by values, "
                f"or ship what lies before and behind it."
            )
        if not isinstance(kind, nn.Module):
            for name in (kind, self.kind):  # libraries that need not be there are known by their functions' names
                if name in FORMS:
                    return FORMS[name]
            raise RefusedError(
                f"The call of {self.kind} at {self.where} has no deployed form: use an operation that has one, or keep "
                f"the module that calls it out of the network."
            )
        for base in type(kind).__mro__:
            if base in FORMS and (base is type(kind) or not base.__module__.startswith("torch.")):
                return FORMS[base]
        raise RefusedError(f"The {type(kind).__name__} of layer {self.where} has no deployed form.")

    def axis(self, ref: Ref, dim: int) -> int:
        """An axis of a tensor, counted from the first; RefusedError for that of the images."""
        axis = dim + len(self.sizes(ref)) if dim < 0 else dim
        if not 1 <= axis <= 3:
            raise RefusedError(f"The axis {dim} of {self.kind} at {self.where} has no deployed form; 1, 2 and 3 have.")
        return axis

    def emit(self, op: str, inputs: Sequence[Ref], **keys: Any) -> Ref:
        """One node; the first of a step has the step's name."""
        name = f"{self.step.name}__{self._emitted}" if self._emitted else self.step.name
        self._emitted += 1
        self.conversion.nodes.append({"name": name, "inputs": [ref.name for ref in inputs], "op": op, **keys})
        return Ref(name)

    def store(self, key: str, tensor: Tensor | None) -> str | None:
        """A tensor of the file; the name under which it is stored there."""
        if tensor is None:
            return None
        self.conversion.stored[f"{self.path}.{key}"] = tensor
        return f"{self.path}.{key}"

    def own_sizes(self) -> Any:
        """Of what this step gives, for two images."""
        return self.conversion.sizes(self.step)

    def sizes(self, ref: Ref) -> tuple[int, ...]:
        """Of a tensor that a step gives, for two images."""
        return tuple(self.conversion.sizes(self.conversion.made_by(ref)))


def _calling_module(step: fx.Node) -> str:
    stack = step.meta.get("nn_module_stack") or {}
    return str(next(reversed(stack.values()))[0]) if stack else ""


def _word(target: Any) -> str:
    """``torch.cat``, ``Tensor.view``: a function or a method for people."""
    if isinstance(target, str):
        return f"Tensor.{target}"
    module = str(getattr(target, "__module__", "")).removeprefix("_")
    return ".".join(filter(None, (module.partition(".")[0], str(getattr(target, "__name__", target)))))


def _names(output: Any) -> Any:
    """The names of what the network gives, in the structure in which it gives them."""
    if isinstance(output, Ref):
        return output.name
    if isinstance(output, dict) and all(isinstance(key, str) for key in output):
        return {key: _names(item) for key, item in output.items()}
    if isinstance(output, list | tuple):
        return [_names(item) for item in output]
    raise RefusedError(
        f"The network gives {str(output)[:50]}, which is no tensor: leave it out of what forward returns."
    )


def _refs(value: Any) -> Iterator[Ref]:
    """All tensors in a step's arguments."""
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, list | tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _refs(item)
    elif isinstance(value, slice):
        yield from _refs((value.start, value.stop, value.step))


def _attribute(net: nn.Module, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return getattr(net.get_submodule(owner), name)


class _Sizes(fx.Interpreter):
    """Runs a network and notes what every step gives, tensors as their sizes."""

    def __init__(self, net: nn.Module, graph: fx.Graph) -> None:
        super().__init__(net, graph=graph)
        self.seen: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        """One step."""
        found = super().run_node(n)
        self.seen[n] = _size_of(found)
        return found


def _size_of(value: Any) -> Any:
    if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
        return [_size_of(item) for item in value]
    return tuple(value.shape) if isinstance(value, Tensor) else value


@torch.no_grad()
def _sizes(net: nn.Module, graph: fx.Graph, input_shape: Sequence[int]) -> dict[fx.Node, Any]:
    like = next(net.parameters(), torch.zeros(()))
    interpreter = _Sizes(net, graph)
    modes = {part: part.training for part in net.modules()}
    try:
        with frozen_layers(net.eval()):
            interpreter.run(like.new_zeros(IMAGES, *input_shape))
    finally:
        for part, mode in modes.items():
            part.training = mode
    return interpreter.seen
