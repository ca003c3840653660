"""The linear regions of a network: what lies between one tensor and another and is one convolution."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass

import torch
from torch import nn

from repq_cli.graphs.program import Operation, Program
from repq_cli.reparam.affine import Affine, NoConvolution
from repq_cli.reparam.expression import SOURCE, ExpressionBranch, Scale, Shift, Step
from repq_cli.reparam.statistics import RunningStatistics

BEHIND = (nn.BatchNorm2d, Scale, Shift)  # what belongs to the operation in front of it
UNARY = (nn.Conv2d, nn.AvgPool2d, nn.ZeroPad2d, *BEHIND)
SUMS = {operator.add: "add", operator.sub: "sub"}


@dataclass(frozen=True)
class Region:
    """The operations from ``source``, which is not among them, to the last of ``members``; ``affine``: their shapes."""

    source: str
    members: tuple[str, ...]
    affine: Affine

    @property
    def end(self) -> str:
        """The operation whose output is the region's."""
        return self.members[-1]


def find_regions(program: Program) -> list[Region]:
    """The largest regions that are one convolution, exactly, and cost no more as one than as they are.

    From each last operation backwards: the tensor farthest from it on which alone it depends, linearly, and which no
    other operation reads anything of that lies between. Nothing is merged through padding with zeros in the middle.
    """
    return _Finder(program).regions()


class _Finder:
    def __init__(self, program: Program) -> None:
        self.program, self.operations = program, program.operations
        self.readers = program.readers()
        self.order = {name: place for place, name in enumerate(self.operations)}
        self.sources: dict[str, list[str]] = {}
        for name in self.operations:
            self.sources[name] = self._sources(name)

    def regions(self) -> list[Region]:
        found: list[Region] = []
        taken: set[str] = set()
        for name in reversed(self.operations):
            if name in taken or not is_linear(self.operations[name]):
                continue
            region = next(
                filter(None, (self._region(source, name) for source in reversed(self.sources[name][1:]))), None
            )
            if region is not None:
                found.append(region)
                taken |= set(region.members)
        return found[::-1]

    def _sources(self, name: str) -> list[str]:
        """The tensors on which alone this one depends, linearly, the nearest first; itself before all others."""
        operation = self.operations[name]
        if not is_linear(operation):
            return [name]
        rows = [self.sources.get(source, [source]) for source in operation.inputs]
        return [name, *(source for source in rows[0] if all(source in row for row in rows[1:]))]

    def _region(self, source: str, end: str) -> Region | None:
        """From ``source`` to ``end``, if that is a region."""
        members = self._between(source, end)
        inner = set(members) - {end}
        if any(not set(self.readers[name]) <= set(members) for name in inner):
            return None
        if not any(_has_weights(self.operations[name]) for name in members) or self._is_torn_off(source):
            return None
        affine = self._affine(source, members)
        if affine is None:
            return None
        positions = math.prod(self.operations[end].shape[2:])
        cost = sum(_cost(self.operations[name]) for name in members)
        return Region(source, members, affine) if affine.weight.numel() * positions <= cost else None

    def _between(self, source: str, end: str) -> tuple[str, ...]:
        found, open_ = {end}, [end]
        while open_:
            for name in self.operations[open_.pop()].inputs:
                if name != source and name not in found:
                    found.add(name)
                    open_.append(name)
        return tuple(sorted(found, key=self.order.__getitem__))

    def _is_torn_off(self, source: str) -> bool:
        """Whether only a batch norm or scale reads it that belongs to it."""
        before, readers = self.operations.get(source), self.readers[source]
        if before is None or not is_linear(before) or len(readers) != 1 or not readers[0]:
            return False
        return isinstance(self.operations[readers[0]].target, BEHIND)

    def _affine(self, source: str, members: tuple[str, ...]) -> Affine | None:
        """Shapes of the region as one convolution; None where there is none, for maps of this size or others."""
        parts, steps = parts_and_steps(self.operations, source, members, _without_data)
        before = self.operations[source].shape if source in self.operations else self.program.input_shape
        branch = ExpressionBranch(before[1], parts, steps).to("meta")
        images = torch.empty(before, device="meta")
        try:
            affines = branch.affines(RunningStatistics())
            for name, affine in affines.items():
                if name != SOURCE and affine.layout.out_size(images) != self.operations[name].shape[2:]:
                    return None
        except NoConvolution:
            return None
        return affines[members[-1]]


def parts_and_steps(
    operations: dict[str, Operation], source: str, members: tuple[str, ...], module_of: object
) -> tuple[dict[str, nn.Module], list[Step]]:
    """The modules of a region's operations, as ``module_of`` gives them, and its steps."""
    parts: dict[str, nn.Module] = {}
    steps: list[Step] = []
    for name in members:
        operation = operations[name]
        inputs = tuple(SOURCE if before == source else before for before in operation.inputs)
        module = operation.module
        if module is not None:
            parts[name] = module_of(module)  # type: ignore[operator]
        steps.append(Step(name, name if module is not None else SUMS[operation.target], inputs))
    return parts, steps


def is_linear(operation: Operation) -> bool:
    """Whether it is a linear operation of maps that a region may hold."""
    if len(operation.shape) != 4 or operation.kwargs:
        return False
    module = operation.module
    if module is None:
        return operation.target in SUMS and len(operation.inputs) == len(operation.args) == 2
    if isinstance(module, nn.BatchNorm2d):
        return module.running_mean is not None
    return isinstance(module, UNARY)


def _has_weights(operation: Operation) -> bool:
    module = operation.module
    if isinstance(module, Scale | Shift):
        return isinstance(module.constant, nn.Module)
    return isinstance(module, nn.Conv2d | nn.BatchNorm2d)


def _cost(operation: Operation) -> int:
    """Multiplications for one image."""
    channels, *positions = operation.shape[1:]
    each = 1
    if isinstance(operation.module, nn.Conv2d):
        each = operation.module.weight[0].numel()
    elif isinstance(operation.module, nn.AvgPool2d):
        size = operation.module.kernel_size
        each = size * size if isinstance(size, int) else math.prod(size)
    return channels * math.prod(positions) * each


def _without_data(module: nn.Module) -> nn.Module:
    """A module with the shapes of that one."""
    with torch.device("meta"):
        match module:
            case nn.Conv2d():
                return nn.Conv2d(
                    module.in_channels,
                    module.out_channels,
                    module.kernel_size,  # type: ignore[arg-type]
                    module.stride,  # type: ignore[arg-type]
                    module.padding,  # type: ignore[arg-type]
                    module.dilation,  # type: ignore[arg-type]
                    module.groups,
                    module.bias is not None,
                    module.padding_mode,
                )
            case nn.BatchNorm2d():
                return nn.BatchNorm2d(module.num_features)
            case Scale() | Shift():
                return type(module)(1.0)
    return module
