"""Linear layers of tokens, ``[N, L, C]`` or ``[N, H, W, C]``, as what they are: 1x1 convolutions of maps.

Layers of integers have their channels behind the images; so tokens are turned in front of such a layer and back behind.
"""

from __future__ import annotations

from torch import nn

from repq_cli.graphs.computed import AsKernel, ComputedConv
from repq_cli.graphs.program import Operation, Program, Ref, replaced_by


def with_tokens_as_maps(program: Program) -> Program:
    """``program`` with a convolution in place of each linear layer of tokens."""
    found: dict[str, Operation] = {}
    for name, operation in program.operations.items():
        linear = operation.module
        if not isinstance(linear, nn.Linear) or len(operation.shape) not in (3, 4) or len(operation.inputs) != 1:
            found[name] = operation
            continue
        last = operation.inputs[0]
        for step in _steps(operation, linear):
            found[step.name] = step
            step.args = (Ref(last), *step.args)
            last = step.name
    return replaced_by(program, found)


def _steps(operation: Operation, linear: nn.Linear) -> list[Operation]:
    """From tokens to tokens; each reads the one before it, which its arguments lack."""
    name, (images, *places, outputs) = operation.name, operation.shape
    inputs = linear.in_features
    conv = ComputedConv(AsKernel(linear.weight), [outputs, inputs, 1, 1], linear.bias).train(linear.training)

    def step(number: int, target: object, args: tuple[object, ...], shape: tuple[int, ...]) -> Operation:
        own = name if number == 0 else f"{name}_{number}_of_tokens"
        path = operation.path if target is conv else ""
        return Operation(own, target, args, path=path, shape=shape)

    if len(places) == 2:
        return [
            step(1, "permute", (0, 3, 1, 2), (images, inputs, *places)),
            step(2, conv, (), (images, outputs, *places)),
            step(0, "permute", (0, 2, 3, 1), operation.shape),
        ]
    (length,) = places
    return [
        step(1, "transpose", (1, 2), (images, inputs, length)),
        step(2, "reshape", (-1, inputs, length, 1), (images, inputs, length, 1)),
        step(3, conv, (), (images, outputs, length, 1)),
        step(4, "reshape", (-1, outputs, length), (images, outputs, length)),
        step(0, "transpose", (1, 2), operation.shape),
    ]
