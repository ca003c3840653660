"""What is known of one operation of deployed networks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from torch import Tensor

from repq_cli.bounds import Range

if TYPE_CHECKING:
    from repq_cli.deploy.integer import IntegerNet
    from repq_cli.deploy.integer_scales import Scaled
    from repq_cli.deploy.network import DeployedNet
    from repq_cli.deploy.onnx_graph import OnnxGraph

Node = dict[str, Any]
Constants = dict[str, Any]

Bits = Annotated[int, Range(1, 8)]
Code = Annotated[int, Range(-256, 256)]
Size = Annotated[int, Range(1, 2**20)]
Place = Annotated[int, Range(0, 256)]
Step = Annotated[int, Range(1, 256)]
Places = Place | tuple[Place, Place]  # of rows and columns
Axis = Annotated[int, Range(1, 3)]  # 1: channels
Steps = Step | tuple[Step, Step]
Padding = Place | tuple[Place, Place] | tuple[Place, Place, Place, Place]  # or top, left, bottom, right
Optional = str | None
LARGEST_TENSOR = 2**31  # elements

# Of files: the first; with codes of their own for split identities; with operations of other people's networks. Files
# have the least that they need, so that older versions of repq read what they can.
FORMATS = FORMAT, FORMAT_WITH_IDENTITIES, FORMAT_OF_ANY_NETWORK = 2, 3, 4


def schema(*others: Mapping[str, Any], **keys: Any) -> Mapping[str, Any]:
    """The annotations of a node's keys: those of others, and more."""
    return {name: annotation for part in (*others, keys) for name, annotation in part.items()}


class Operation:
    """One entry of the registry; a subclass says what an operation is in every form that a network has.

    name           what ``op`` says in a node
    keys, others   the keys of its node beside ``name``, ``op`` and ``inputs``, and those that it may lack
    inputs         the least and the greatest number of its inputs
    tensors        keys that name a tensor with which ``compute`` computes as it is
    keeps_codes    codes in are codes out, of the same step, so that a layer may read them
    keeps_numbers  a number out is one of those in, a mean or a sum of them, so that steps behind it say how fine they
                   have to be
    """

    name: ClassVar[str]
    keys: Mapping[str, Any] = schema()
    others: Mapping[str, Any] = schema()
    inputs: tuple[int, int] = (1, 1)
    tensors: tuple[str, ...] = ()
    keeps_codes = False
    keeps_numbers = True

    def format(self, node: Node) -> int:
        """The first version of files whose readers know this node."""
        return FORMAT

    def problems(self, node: Node, known: Mapping[str, Node], tensors: Mapping[str, Tensor]) -> Iterator[str]:
        """What is wrong with a node whose keys are of the right types, as a sentence's end.

        known: the nodes before it. tensors: those of the file.
        """
        return iter(())

    def hold(self, net: DeployedNet, node: Node) -> None:
        """Prepare the tensors that ``compute`` computes with."""
        for key in self.tensors:
            if node.get(key):
                net.hold(node, key, net.stored[node[key]])

    def compute(self, net: DeployedNet, node: Node, *inputs: Any, **unused: Any) -> Tensor:
        """In floating point."""
        raise NotImplementedError

    def size(self, net: DeployedNet, node: Node, *given: list[int]) -> list[int]:
        """Of its output, given those of its inputs, by the device meta. Raises what torch raises if they do not fit.

        Operations of most networks know it themselves: for the device meta torch imports its compiler.
        """
        return net.size_by_torch(node, *given)

    def scales(self, node: Node, known: list[Scaled], net: IntegerNet) -> tuple[Constants, Scaled | None]:
        """The node's integer constants and what is known of its output."""
        raise NotImplementedError

    def integers(self, net: IntegerNet, node: Node, constants: Constants, *inputs: Any, **unused: Any) -> Tensor:
        """In integers, ``int32`` by value."""
        raise NotImplementedError

    def onnx(self, graph: OnnxGraph, node: Node) -> None:
        """As nodes of ONNX."""
        raise NotImplementedError

    def limits(self, node: Node) -> tuple[float, float] | None:
        """Where it cuts what it lets through otherwise, if that is all it does: codes can be clipped instead."""
        return None


def as_given(operation: Operation, net: DeployedNet, node: Node, *given: list[int]) -> list[int]:
    """The size of what is computed number by number of one input, or of several of one size."""
    return [*given[0]] if all(size == given[0] for size in given) else net.size_by_torch(node, *given)


class SameScale(Operation):
    """An operation whose integers have the scale and the bound of its only input."""

    def scales(self, node: Node, known: list[Scaled], net: IntegerNet) -> tuple[Constants, Scaled]:
        (given,) = known
        return {}, given._replace(codes=given.codes and self.keeps_codes)
