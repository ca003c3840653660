"""From the program of a foreign network to a network of blocks and taps."""

from __future__ import annotations

import builtins
import copy
import keyword
import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from repq_cli.answers import tensors
from repq_cli.errors import ConfigError
from repq_cli.graphs.adopted import Adopted, Applied, Call
from repq_cli.graphs.blocks import block_of, common
from repq_cli.graphs.floats import kept_of, named
from repq_cli.graphs.operations import operations_of
from repq_cli.graphs.program import Operation, Program, Ref, references, replaced
from repq_cli.graphs.regions import SUMS, Region, find_regions
from repq_cli.graphs.taps import FUNCTIONS_KEEPING_SIGN, tapped
from repq_cli.graphs.trace import trace, without_data
from repq_cli.models.tap import Shortcut
from repq_cli.quant.float_leaf import is_kept
from repq_cli.reparam.block import Block
from repq_cli.reparam.transposed import LAYERS, Transposed

PLAIN = (*SUMS, *FUNCTIONS_KEEPING_SIGN)  # functions that are called as they are
ABSORBED = (nn.ReLU, nn.ReLU6, nn.PReLU)  # a block's own activation


def adopt(net: nn.Module, example: Tensor, keep_float: Sequence[str] = ()) -> Adopted:
    """``net`` as a network of blocks, with its parameters' values; ``net`` stays as it is.

    example     a batch of inputs like ``[B, C, H, W]``
    keep_float  names of modules, also as patterns, that stay in floating point, and as they are where they cannot be
                followed

    Raises ConfigError where ``net`` cannot be followed, and for names that fit nothing, or a part of a region.
    """
    kept = named(net, keep_float)
    program = operations_of(trace(net, example, lambda name: is_kept(name, kept)))
    found = _Maker(program, find_regions(program), type(net).__name__).adopted()
    found.kept = kept_of(found, kept)
    if not program.leaves:
        _require_any_number_of_images(found, example)
    return found.train(net.training)


def _require_any_number_of_images(net: Adopted, example: Tensor) -> None:
    """ConfigError for a network that computes with the number of images that it was traced for."""
    followed = without_data(net).eval()
    images = torch.empty(2, *example.shape[1:], dtype=example.dtype, device="meta")
    values, where, problem = {followed.input: images}, "", None
    try:
        for call in followed.calls:
            where = call.name
            followed.carry_out(call, values)
        if any(len(output) != 2 for output in tensors(replaced(followed.outputs, values.__getitem__))):
            problem = "it gives no answer for each of them"
    except Exception as error:  # whatever torch raises for sizes that do not fit
        problem = str(error).partition("\n")[0] or type(error).__name__
    if problem is not None:
        raise ConfigError(
            f"{net.kind} computes with the number of images, which may be any (at {where}: {problem}): use "
            f"view(x.size(0), …) and the like, no shape in which images are put together, and no constant that is "
            f"repeated for each of them."
        )


class _Maker:
    """Puts the network together again."""

    def __init__(self, program: Program, regions: list[Region], kind: str) -> None:
        self.program, self.kind = program, kind
        self.by_end = {region.end: region for region in regions}
        self.inside = {name for region in regions for name in region.members} - set(self.by_end)
        self.operations: dict[str, Operation] = {}
        self.new_names: dict[str, str] = {}
        self.modules: dict[str, nn.Module] = {}
        self.called: set[str] = set()

    def adopted(self) -> Adopted:
        self._merge_regions()
        self._absorb_activations()
        net = Adopted(self.kind)
        self._place(net)
        self._tap(net)
        net.input = self.program.input
        self._free(net)
        for name, module in self.modules.items():
            _add(net, name, module)
        net.foreign_names = _foreign_names(net, self.program.net)
        return net

    def _merge_regions(self) -> None:
        for name, operation in self.program.operations.items():
            if name in self.by_end:
                region = self.by_end[name]
                block = block_of(region, self.program.operations, self._kind_of(region))
                path = self._path_of(region)
                args = (Ref(region.source),)
                self.operations[name] = Operation(name, block, args, path=path, shape=operation.shape)
            elif name not in self.inside:
                self.operations[name] = operation

    def _paths(self, region: Region) -> list[str]:
        found = [self.program.operations[name] for name in region.members]
        return [operation.path for operation in found if operation.module is not None]

    def _kind_of(self, region: Region) -> str:
        """The class that somebody wrote for it."""
        path = common(self._paths(region))
        while path and isinstance(self.program.net.get_submodule(path), nn.Sequential | nn.ModuleList | nn.ModuleDict):
            path = path.rpartition(".")[0]
        return type(self.program.net.get_submodule(path)).__name__ if path else "region"

    def _path_of(self, region: Region) -> str:
        """The module that holds all of a region, if it holds nothing else that has weights; else a convolution's."""
        members = [self.program.operations[name] for name in region.members]
        paths = self._paths(region)
        path = common(paths)
        mine = set(paths)
        if path and len(paths) > 1:
            holder = self.program.net.get_submodule(path)
            others = [
                name
                for name, module in holder.named_modules(prefix=path)
                if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)) and name not in mine
            ]
            if not others:
                return path
        convolutions = [operation.path for operation in members if isinstance(operation.module, nn.Conv2d)]
        return (convolutions or paths)[0]

    def _absorb_activations(self) -> None:
        readers = self._readers()
        for name, operation in list(self.operations.items()):
            block, read_by = operation.target, readers[name]
            if not isinstance(block, Block | Transposed) or len(read_by) != 1 or not read_by[0]:
                continue
            after = self.operations[read_by[0]]
            if type(after.target) in ABSORBED:
                block.activation = after.target
                self.operations[after.name] = Operation(
                    after.name, block, operation.args, path=operation.path, shape=after.shape
                )
                del self.operations[name]

    def _readers(self) -> dict[str, list[str]]:
        return replace(self.program, operations=self.operations).readers()

    def _place(self, net: Adopted) -> None:
        """Name every operation, blocks first."""
        ordered = sorted(self.operations.values(), key=lambda operation: not isinstance(operation.target, LAYERS))
        for operation in ordered:
            module, wanted = operation.module, operation.path
            if module is None and operation.target not in PLAIN:
                module = operation.target = Applied(operation.target)
                wanted = f"{wanted}.{module.word}".lstrip(".")
            elif module is None:
                wanted = ""
            self.new_names[operation.name] = self._free_name(wanted or operation.name, operation.name)
            if module is not None:  # one that is called twice is two, of the same parameters
                again = any(module is other for other in self.modules.values())
                self.modules[self.new_names[operation.name]] = copy.copy(module) if again else module
        self.new_names[self.program.input] = self.program.input

    def _free_name(self, wanted: str, otherwise: str) -> str:
        for name in (wanted, f"{wanted}.block", wanted.replace(".", "_"), otherwise):
            if self._is_free(name):
                break
        number, base = 1, name
        while not self._is_free(name):
            name, number = f"{base}_{number}", number + 1
        self.called.add(name)
        return name

    def _is_free(self, name: str) -> bool:
        plain = name.replace(".", "_")
        if keyword.iskeyword(plain) or hasattr(builtins, plain) or hasattr(Adopted(""), name.partition(".")[0]):
            return False
        return not any(
            f"{name}.".startswith(f"{other}.") or f"{other}.".startswith(f"{name}.") or plain == other.replace(".", "_")
            for other in self.called
        )

    def _tap(self, net: Adopted) -> None:
        """The calls, with a tap behind every tensor that becomes codes."""
        readers = self._readers()
        taps = tapped(self.operations, readers)
        tap_of: dict[str, str] = {}
        for name, tap in taps.items():
            layers = [r for r in readers[name] if r and isinstance(self.operations[r].target, LAYERS)]
            first = next(iter(layers or [r for r in readers[name] if r]))
            tap_of[name] = self._free_name(f"{self.new_names[first]}_tap", f"{name}_tap")
            self.modules[tap_of[name]] = tap
        names = self.new_names

        def codes(name: str) -> Ref:
            return Ref(tap_of.get(name, names[name]))

        if self.program.input in tap_of:
            tap_name = tap_of[self.program.input]
            net.calls.append(Call(tap_name, tap_name, None, (Ref(self.program.input),), {}, ()))
        for operation in self.operations.values():
            name, module = names[operation.name], operation.module
            if isinstance(module, Block):
                (source,) = operation.inputs
                args: Any = (codes(source), Ref(names[source]))
            elif operation.target is operator.add:
                args = tuple(
                    self._addend(net, name, place, source, codes, tap_of)
                    for place, source in enumerate(operation.inputs)
                )
            else:
                args = replaced(operation.args, codes)
            kwargs = replaced(operation.kwargs, codes)
            module_name = name if module is not None else None
            function = None if module is not None else operation.target
            net.calls.append(Call(name, module_name, function, args, kwargs, ()))
            if operation.name in tap_of:
                tap_name = tap_of[operation.name]
                net.calls.append(Call(tap_name, tap_name, None, (Ref(name),), {}, ()))
        net.outputs = replaced(self.program.outputs, lambda name: Ref(names[name]))
        net._edges = self._find_edges(net, tap_of)

    def _addend(
        self, net: Adopted, name: str, place: int, source: str, codes: Callable[[str], Ref], tap_of: dict[str, str]
    ) -> Ref:
        """What a sum reads: of a tensor that has codes, these, or by ``quant.residual=fp`` the tensor before."""
        if source not in tap_of:
            return Ref(self.new_names[source])
        shortcut = self._free_name(f"{name}_shortcut{place or ''}", f"{source}_shortcut")
        self.modules[shortcut] = Shortcut()
        net.calls.append(Call(shortcut, shortcut, None, (codes(source), Ref(self.new_names[source])), {}, ()))
        return Ref(shortcut)

    def _find_edges(self, net: Adopted, tap_of: dict[str, str]) -> frozenset[str]:
        """Layers that no other lies in front of, or behind, and what they read."""
        first, last = set[str](), set[str]()
        readers = self._readers()
        behind: dict[str, bool] = {}
        for operation in self.operations.values():
            seen = any(
                behind.get(source, False) or isinstance(getattr(self.operations.get(source), "target", None), LAYERS)
                for source in operation.inputs
            )
            behind[operation.name] = seen
            if isinstance(operation.target, LAYERS) and not seen:
                first.add(operation.name)
        before: dict[str, bool] = {}
        for operation in reversed(self.operations.values()):
            found = any(
                reader and (before[reader] or isinstance(self.operations[reader].target, LAYERS))
                for reader in readers[operation.name]
            )
            before[operation.name] = found
            if isinstance(operation.target, LAYERS) and not found:
                last.add(operation.name)
        net.last_layers = tuple(sorted(self.new_names[name] for name in last))
        edges = first | last
        sources = {source for name in edges for source in self.operations[name].inputs}
        return frozenset(self.new_names[name] for name in edges) | {
            tap_of[source] for source in sources if source in tap_of
        }

    def _free(self, net: Adopted) -> None:
        """Say behind which call a tensor is read no more."""
        seen = set(references(net.outputs))
        found: list[Call] = []
        for call in reversed(net.calls):
            inputs = dict.fromkeys(references((call.args, call.kwargs)))
            last = tuple(name for name in inputs if name not in seen)
            seen |= set(inputs)
            found.append(call._replace(last_of=last))
        net.calls = found[::-1]


def _add(net: nn.Module, path: str, module: nn.Module) -> None:
    parent = net
    *folders, name = path.split(".")
    for folder in folders:
        if not hasattr(parent, folder):
            parent.add_module(folder, nn.Module())
        parent = getattr(parent, folder)
    parent.add_module(name, module)


def _foreign_names(net: nn.Module, foreign: nn.Module) -> dict[str, str]:
    tensors = [*foreign.named_parameters(), *foreign.named_buffers()]
    names = {id(tensor): name for name, tensor in tensors}
    mine: Sequence[tuple[str, Tensor]] = [*net.named_parameters(), *net.named_buffers()]
    return {name: names[id(tensor)] for name, tensor in mine if id(tensor) in names}
