"""Operations that write into what they read, such as ``F.relu(x, inplace=True)`` or ``x += y``.

A graph's operations give new tensors and change none. So whatever reads a tensor behind such an operation has to read
what that operation gives, whether the program held on to it or not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx


class Writes:
    """Which operations of a trace write, by the values of its nodes, which all are kept.

    place: the module in which a write cannot be followed, behind an error.
    """

    def __init__(self, values: Mapping[fx.Node, Any]) -> None:
        self.values, self.place = values, ""
        self.written: dict[fx.Node, list[fx.Node]] = {}  # by an operation what it wrote into

    @contextmanager
    def watched(self, node: fx.Node) -> Iterator[None]:
        """While a node is carried out: note which of its inputs change."""
        before = [(source, tensor, tensor._version) for source, tensor in self._tensors(node)]
        yield
        changed = [source for source, tensor, version in before if tensor._version != version]
        if changed:
            self.written[node] = changed

    def redirect_readers(self, graph: fx.Graph) -> None:
        """Let what reads a written tensor read what the last operation that wrote into it gives.

        Raises ValueError where that is another part of memory than the reader's: a view of which only some changed.
        """
        if not self.written:
            return
        latest: list[fx.Node] = []  # that wrote, the last one first
        order = {node: place for place, node in enumerate(graph.nodes)}
        for node in graph.nodes:
            for source, tensor in self._tensors(node):
                for writer in latest:
                    if order[writer] < order[source] or not self._share(writer, tensor):
                        continue
                    self._require_same(writer, tensor, node)
                    node.replace_input_with(source, writer)
                    break
            if node in self.written:
                self._require_no_parameter(node)
                latest.insert(0, node)

    def _tensors(self, node: fx.Node) -> list[tuple[fx.Node, Tensor]]:
        given = [(source, self.values.get(source)) for source in node.all_input_nodes]
        return [(source, value) for source, value in given if isinstance(value, Tensor)]

    def _share(self, writer: fx.Node, tensor: Tensor) -> bool:
        """Whether a writer wrote where a tensor lies."""
        return any(_overlap(self.values[source], tensor) for source in self.written[writer])

    def _require_same(self, writer: fx.Node, tensor: Tensor, reader: fx.Node) -> None:
        given = self.values[writer]
        if not isinstance(given, Tensor) or _memory(given) != _memory(tensor):
            problem = f"{writer.name} writes into a tensor of which {reader.name} reads another view behind it"
            self._refuse(writer, problem)

    def _require_no_parameter(self, node: fx.Node) -> None:
        for source in self.written[node]:
            if source.op == "get_attr":
                self._refuse(node, f"{node.name} writes into the network's own {source.target}")

    def _refuse(self, node: fx.Node, problem: str) -> None:
        stack = node.meta.get("nn_module_stack") or {}
        self.place = str(next(reversed(stack.values()))[0]) if stack else ""
        raise ValueError(f"{problem}; use no inplace=True, no += and no method such as relu_() there")


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    """Where a tensor lies: equal for two that are one, whatever happens to either."""
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), tuple(tensor.shape), tensor.stride()


def _overlap(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors share an element."""
    if one.untyped_storage()._cdata != other.untyped_storage()._cdata:
        return False
    if _memory(one) == _memory(other):
        return True
    elements = one.untyped_storage().nbytes() // one.element_size()
    taken = torch.zeros(elements, dtype=torch.bool)
    taken.as_strided(one.shape, one.stride(), one.storage_offset()).fill_(True)
    return bool(taken.as_strided(other.shape, other.stride(), other.storage_offset()).any())
