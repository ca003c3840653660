"""Batch norms of vectors, and the linear layers beside them, as what they are to maps of one pixel.

``BN(W x + b)`` and ``W BN(x) + b`` of ``[N, C]`` are those of maps ``[N, C, 1, 1]`` with a 1x1 convolution, and so
linear regions like any others: a classifier behind its own batch norm is one layer of integers.
"""

from __future__ import annotations

from torch import nn

from repq_cli.graphs.computed import AsKernel, ComputedConv
from repq_cli.graphs.modules import norm_like
from repq_cli.graphs.program import Operation, Program, Ref, replaced_by


def with_normed_vectors_as_maps(program: Program) -> Program:
    """``program`` with its batch norms of vectors as batch norms of maps, and their neighbours as convolutions."""
    norms = {name for name, operation in program.operations.items() if _is_of_vectors(operation, nn.BatchNorm1d)}
    return _Writer(program, norms).program_of_maps() if norms else program


class _Writer:
    def __init__(self, program: Program, norms: set[str]) -> None:
        self.program, self.operations, self.readers = program, program.operations, program.readers()
        self.chosen = norms | {name for name in self.operations if self._is_neighbour(name, norms)}
        self.found: dict[str, Operation] = {}
        self.maps: dict[str, str] = {}  # by vector the map that it is

    def program_of_maps(self) -> Program:
        for name, operation in self.operations.items():
            if name not in self.chosen:
                self.found[name] = operation
                continue
            source = self._map_of(operation.inputs[0])
            self.maps[name] = f"{name}_of_map"
            module, shape = _of_maps(operation.module), (*operation.shape, 1, 1)
            self.found[self.maps[name]] = Operation(
                self.maps[name], module, (Ref(source),), path=operation.path, shape=shape
            )
            self.found[name] = Operation(name, nn.Flatten(1), (Ref(self.maps[name]),), shape=operation.shape)
        return replaced_by(self.program, self.found)

    def _is_neighbour(self, name: str, norms: set[str]) -> bool:
        """Whether it is a linear layer whose input, or whose only reader, is one of these norms."""
        operation = self.operations[name]
        if not _is_of_vectors(operation, nn.Linear):
            return False
        source, readers = operation.inputs[0], self.readers[name]
        return (source in norms and len(self.readers[source]) == 1) or (len(readers) == 1 and readers[0] in norms)

    def _map_of(self, vector: str) -> str:
        """The operation that gives a vector as a map of one pixel."""
        if vector not in self.maps:
            before = self.operations.get(vector)
            shape = (self.program.input_shape if before is None else before.shape)[:2]
            if before is not None and isinstance(before.module, nn.Flatten):
                source = self.operations.get(before.inputs[0])
                if source is not None and source.shape == (*shape, 1, 1):
                    self.maps[vector] = source.name
                    return source.name
            name = self.maps[vector] = f"{vector}_as_map"
            unflatten = nn.Unflatten(1, (shape[1], 1, 1))
            self.found[name] = Operation(name, unflatten, (Ref(vector),), shape=(*shape, 1, 1))
        return self.maps[vector]


def _is_of_vectors(operation: Operation, kind: type[nn.Module]) -> bool:
    module = operation.module
    if not isinstance(module, kind) or len(operation.shape) != 2 or len(operation.inputs) != 1:
        return False
    return not isinstance(module, nn.BatchNorm1d) or module.running_mean is not None


def _of_maps(module: nn.Module | None) -> nn.Module:
    if isinstance(module, nn.BatchNorm1d):
        return norm_like(module)
    assert isinstance(module, nn.Linear)
    kernel = AsKernel(module.weight)
    return ComputedConv(kernel, [*module.weight.shape, 1, 1], module.bias)
