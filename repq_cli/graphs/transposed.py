"""Transposed convolutions, each with the batch norm behind it, as one layer."""

from __future__ import annotations

from torch import nn

from repq_cli.graphs.modules import complete_norm
from repq_cli.graphs.program import Operation, Program, replaced_by
from repq_cli.reparam.transposed import Transposed


def with_transposed_layers(program: Program) -> Program:
    """``program`` with a ``Transposed`` for each transposed convolution and the batch norm that alone reads it."""
    readers, found = program.readers(), dict(program.operations)
    for name, operation in program.operations.items():
        conv = operation.module
        if not isinstance(conv, nn.ConvTranspose2d) or conv.padding_mode != "zeros" or len(operation.shape) != 4:
            continue
        after = found.get(readers[name][0]) if len(readers[name]) == 1 else None
        norm = None if after is None else after.module
        if after is not None and isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None:
            layer = Transposed(conv, complete_norm(norm)).train(conv.training)
            found[after.name] = Operation(after.name, layer, operation.args, path=operation.path, shape=after.shape)
            del found[name]
        else:
            layer = Transposed(conv).train(conv.training)
            found[name] = Operation(name, layer, operation.args, path=operation.path, shape=operation.shape)
    return replaced_by(program, found)
