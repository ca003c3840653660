"""A network of somebody else's as one of blocks and taps, which every mode, freeze and table know."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from repq_cli.graphs.program import Ref, replaced


class Call(NamedTuple):
    """One step of a forward pass: a module of the network's by name, or a function, or a tensor's method by name."""

    name: str
    module: str | None
    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    last_of: tuple[str, ...]  # what nothing reads any more


class Applied(nn.Module):
    """A function, or a method by its name, as a module, so that what is said of it names a place in the network."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    @property
    def word(self) -> str:
        """The name of the function or method."""
        return self.function if isinstance(self.function, str) else self.function.__name__

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self.function, str):
            return getattr(args[0], self.function)(*args[1:], **kwargs)
        return self.function(*args, **kwargs)


class Adopted(nn.Module):
    """Calls in order, over modules that have the names of the network they are from, as far as they can.

    kind           the class of that network
    foreign_names  by parameter and buffer its name there
    kept           the modules that stay in floating point
    last_layers    those that no other lies behind: a network for other classes has them anew
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.calls: list[Call] = []
        self.input, self.outputs = "", Ref("")
        self.foreign_names: dict[str, str] = {}
        self.kept: tuple[str, ...] = ()
        self.last_layers: tuple[str, ...] = ()
        self._edges: frozenset[str] = frozenset()

    def forward(self, x: Tensor) -> Any:
        values = {self.input: x}
        for call in self.calls:
            self.carry_out(call, values)
        return replaced(self.outputs, values.__getitem__)

    def carry_out(self, call: Call, values: dict[str, Any]) -> None:
        """One step: its output among the values of those before it, without those that are read no more."""
        args, kwargs = replaced((call.args, call.kwargs), values.__getitem__)
        if call.module is not None:
            values[call.name] = self.get_submodule(call.module)(*args, **kwargs)
        else:
            values[call.name] = call.function(*args, **kwargs)
        for name in call.last_of:
            del values[name]

    def edges(self) -> frozenset[str]:
        """The first and the last layers and the tensors that they read: by convention kept at 8 bit."""
        return self._edges
