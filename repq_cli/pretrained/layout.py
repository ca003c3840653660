"""Which of a file's keys is which tensor of a net of ours: a layout, and the pairs that all of them are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from repq_cli.pretrained.sets import without_wrappers
from repq_cli.reparam.block import Block
from repq_cli.reparam.branch import ConvBranch, SumBranch

Transform = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Source:
    """Where one of our tensors comes from: a key of theirs, and what has to be done to it.

    ``theirs``: the shape that theirs must have, given ours; the same one by default.
    """

    key: str
    transform: Transform | None = None
    theirs: Callable[[torch.Size], torch.Size] | None = None

    def read(self, state: dict[str, Tensor]) -> Tensor:
        """Our tensor."""
        tensor = state[self.key]
        return tensor if self.transform is None else self.transform(tensor)

    def shape(self, ours: torch.Size) -> torch.Size:
        """The shape that theirs must have."""
        return ours if self.theirs is None else self.theirs(ours)


@dataclass(frozen=True)
class Layout:
    """``sources``: for each key of ours, but for counters of batches.

    constants: tensors of theirs that no training changes and that we compute ourselves; theirs must be the same.
    merged: theirs are convolutions without batch norm, merged before they were saved.
    """

    sources: dict[str, Source]
    constants: dict[str, Tensor] = field(default_factory=dict)
    merged: bool = False


Pairs = Iterator[tuple[str, Source]]
COUNTER = "num_batches_tracked"  # of a batch norm: files may leave it out
NORM = ("weight", "bias", "running_mean", "running_var", COUNTER)


def own(net: nn.Module) -> Layout:
    """The net's own ``state_dict()``."""
    return Layout({key: Source(without_wrappers(key)) for key in net.state_dict()})


def foreign(net: nn.Module) -> Layout | None:
    """The state dict of the network that ``net`` was before it became one of blocks; None for networks of our own.

    What it had none of, such as the scale of a batch norm without one, stays as it is.
    """
    names: dict[str, str] = getattr(net, "foreign_names", {})
    if not names:
        return None
    state = net.state_dict()
    some, of_some = next((key, state[ours].shape) for ours, key in names.items())

    def kept(tensor: Tensor) -> Source:
        return Source(some, lambda _: tensor, lambda _: of_some)

    return Layout({key: Source(names[key]) if key in names else kept(tensor) for key, tensor in state.items()})


def norm(ours: str, theirs: str) -> Pairs:
    """A batch norm."""
    return ((f"{ours}.{name}", Source(f"{theirs}.{name}")) for name in NORM)


def linear(ours: str, theirs: str) -> Pairs:
    """A fully connected layer, or a convolution with a bias."""
    return ((f"{ours}.{name}", Source(f"{theirs}.{name}")) for name in ("weight", "bias"))


def conv_norm(ours: str, conv: str, behind: str) -> Pairs:
    """An ordinary convolution of ours, which ``ours`` names as a block, and the batch norm ``behind`` it."""
    yield f"{ours}.branches.conv.conv.weight", Source(f"{conv}.weight")
    yield from norm(f"{ours}.branches.conv.norm", behind)


def merged_conv(net: nn.Module, ours: str, theirs: str) -> Pairs:
    """An ordinary convolution of ours from one that has a bias instead of batch norm.

    A batch norm of ours passes the convolution on and adds the bias: ``gamma = 1``, ``mean = 0``, ``var = 1 - eps``.
    """
    branch = net.get_submodule(f"{ours}.branches.conv")
    assert isinstance(branch, ConvBranch)
    if branch.norm is None:
        yield from linear(f"{ours}.branches.conv.conv", theirs)
        return
    eps, bias = branch.norm.eps, f"{theirs}.bias"
    yield f"{ours}.branches.conv.conv.weight", Source(f"{theirs}.weight")
    yield f"{ours}.branches.conv.norm.weight", Source(bias, torch.ones_like)
    yield f"{ours}.branches.conv.norm.bias", Source(bias)
    yield f"{ours}.branches.conv.norm.running_mean", Source(bias, torch.zeros_like)
    yield f"{ours}.branches.conv.norm.running_var", Source(bias, lambda b: torch.full_like(b, 1 - eps))


def blocks_of(net: nn.Module) -> list[Block]:
    """All blocks of a net."""
    return [module for module in net.modules() if isinstance(module, Block)]


def branches_of(part: nn.Module) -> dict[str, nn.Module]:
    """The branches of a block or of a sum."""
    assert isinstance(part, Block | SumBranch)
    return dict(part.branches.items())


def is_plain(block: nn.Module) -> bool:
    """Whether a block is an ordinary convolution."""
    return isinstance(block, Block) and list(block.branches) == ["conv"]


def all_plain(net: nn.Module) -> bool:
    """Whether all blocks of a net are."""
    return all(map(is_plain, blocks_of(net)))


def normed(net: nn.Module) -> bool:
    """Whether all of its blocks have batch norm."""
    return all(block.has_batch_norm for block in blocks_of(net))
