"""A network's forward pass as data: operations in order, with references among their arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from torch import nn


class Ref(NamedTuple):
    """Stands for the output of an operation among arguments."""

    name: str


@dataclass
class Operation:
    """``target(*args, **kwargs)``, with references to tensors among the arguments.

    name     of its own, valid in Python
    target   a module, a function, or the name of a tensor's method
    path     the module of the traced network that it is, or was called in
    shape    of what it gives, with ``BATCH`` images; empty where that is no tensor
    """

    name: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    path: str = ""
    shape: tuple[int, ...] = ()

    @property
    def inputs(self) -> list[str]:
        """The tensors that it reads, by the names of their operations."""
        return list(references((self.args, self.kwargs)))

    @property
    def module(self) -> nn.Module | None:
        """Its target, if that is a module."""
        return self.target if isinstance(self.target, nn.Module) else None


@dataclass
class Program:
    """Operations in order. ``outputs``: what is given back, with references."""

    input: str
    input_shape: tuple[int, ...]
    operations: dict[str, Operation]
    outputs: Any
    net: nn.Module
    leaves: frozenset[str]

    def readers(self) -> dict[str, list[str]]:
        """By operation those that read it; ``""`` stands for the network's answer."""
        found: dict[str, list[str]] = {name: [] for name in (self.input, *self.operations)}
        for operation in self.operations.values():
            for name in operation.inputs:
                found[name].append(operation.name)
        for name in references(self.outputs):
            found[name].append("")
        return found


def replaced_by(program: Program, operations: dict[str, Operation]) -> Program:
    """The same program of other operations, those on which its outputs depend."""
    return replace(program, operations=wanted(operations, program.outputs))


def wanted(operations: dict[str, Operation], outputs: Any) -> dict[str, Operation]:
    """Those operations on which the outputs depend."""
    names = set(references(outputs))
    for operation in reversed(operations.values()):
        if operation.name in names:
            names |= set(operation.inputs)
    return {name: operation for name, operation in operations.items() if name in names}


def references(arguments: Any) -> Iterator[str]:
    """The names of all references among arguments, in order."""
    if isinstance(arguments, Ref):
        yield arguments.name
    elif isinstance(arguments, tuple | list):
        for value in arguments:
            yield from references(value)
    elif isinstance(arguments, dict):
        yield from references(list(arguments.values()))
    elif isinstance(arguments, slice):
        yield from references([arguments.start, arguments.stop, arguments.step])


def replaced(arguments: Any, value_of: Callable[[str], Any]) -> Any:
    """Arguments with something else in place of each reference."""
    if isinstance(arguments, Ref):
        return value_of(arguments.name)
    if isinstance(arguments, tuple | list):
        return type(arguments)(replaced(value, value_of) for value in arguments)
    if isinstance(arguments, dict):
        return {key: replaced(value, value_of) for key, value in arguments.items()}
    if isinstance(arguments, slice):
        return slice(*(replaced(part, value_of) for part in (arguments.start, arguments.stop, arguments.step)))
    return arguments
