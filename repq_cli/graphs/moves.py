"""Operations that only give a tensor another shape or order, and means that stand behind such a one, as modules."""

from __future__ import annotations

from torch import fx, nn

from repq_cli.graphs.modules import word_of
from repq_cli.graphs.trace import BATCH, Traced

BROADCASTING = {"mul", "mul_", "imul", "add", "add_", "iadd", "sub", "sub_", "isub"}
RESHAPING = {"view", "reshape", "flatten", "squeeze", "unsqueeze", "expand", "expand_as", "view_as", "reshape_as"}


def reshaping(node: fx.Node, word: str, traced: Traced) -> tuple[fx.Node, list[nn.Module] | tuple[int, ...]] | None:
    """What an operation that only gives another shape does, to which tensor; None: it is none, or no known one.

    The modules that do it one behind the other, or the sizes that it gives for any number of images. Of several in
    sequence the last one does it all.
    """
    if word == "mean":
        return _means(node, traced)
    if word == "getitem" and isinstance(node.args[0], fx.Node):  # x[:, :, 0, 0] and x[:, :, None, None]
        before, after = traced.shape(node.args[0]), traced.shape(node)
        if before == (*after, 1, 1) and len(after) == 2:
            return node.args[0], [nn.Flatten(1)]
        if after == (*before, 1, 1) and len(before) == 2:
            return node.args[0], [nn.Unflatten(1, (before[1], 1, 1))]
        return None
    if word in RESHAPING:
        source = node.args[0] if word in ("expand", "expand_as") else _origin(node)
        assert isinstance(source, fx.Node)
        before, after = traced.shape(source), traced.shape(node)
        if before == after:
            return source, []
        if len(before) == 4 and len(after) == 2 and after[0] == BATCH:
            return source, [nn.Flatten(1)]
        if len(before) == 2 and after == (*before, 1, 1):
            return source, [nn.Unflatten(1, (before[1], 1, 1))]
        if word in ("expand", "expand_as"):
            return _expanded(node, traced)
        shuffle = _shuffle(node, traced)
        if shuffle is None and word in ("view", "reshape") and after[:1] == (BATCH,):
            first = node.args[0]
            assert isinstance(first, fx.Node)
            return first, (-1, *after[1:])
        return shuffle
    return None


def _expanded(node: fx.Node, traced: Traced) -> tuple[fx.Node, list[nn.Module]] | None:
    """One pixel, or one channel, for all of them."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    before, after = traced.shape(source), traced.shape(node)
    if len(before) != 4 or len(after) != 4 or before[0] != after[0]:
        return None
    if all(word_of(reader) in BROADCASTING for reader in node.users):
        return source, []  # what reads it broadcasts
    whole = before[2:] == (1, 1) and before[1] == after[1]
    return (source, [nn.Upsample(size=after[2:])]) if whole else None


def _means(node: fx.Node, traced: Traced) -> tuple[fx.Node, list[nn.Module]] | None:
    """The mean of each channel as global average pooling, in other spellings than ``mean((2, 3))``.

    ``x.flatten(2).mean(2)`` and ``x.mean(3).mean(2)`` of maps, ``x.mean(1)`` and ``x.mean(2)`` of tokens.
    """
    pool, vector = nn.AdaptiveAvgPool2d(1), nn.Flatten(1)
    axis = _axis_of_mean(node, traced)
    inner = node.args[0]
    assert isinstance(inner, fx.Node)
    before = traced.shape(inner)
    if len(before) != 3 or axis not in (1, 2):
        return None
    source = inner.args[0] if _axis_of_mean(inner, traced) == 3 else _origin(inner)
    assert isinstance(source, fx.Node)
    channels = traced.shape(source)[:2] == before[:2]
    if axis == 2 and source is not inner and len(traced.shape(source)) == 4 and channels:
        return source, [pool, vector]
    if axis == 2:
        return inner, [nn.Unflatten(2, (before[2], 1)), pool, vector]
    return inner, [nn.Unflatten(1, (1, before[1])), nn.AvgPool2d((before[1], 1)), vector]


def _axis_of_mean(node: fx.Node, traced: Traced) -> int | None:
    """The one axis that a mean is over, if it takes it away; None for all else."""
    if word_of(node) != "mean":
        return None
    dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    keepdim = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
    dim = dims[0] if isinstance(dims, list | tuple) and len(dims) == 1 else dims
    if not isinstance(node.args[0], fx.Node) or not isinstance(dim, int) or keepdim:
        return None
    return dim % len(traced.shape(node.args[0]))


def _origin(node: fx.Node) -> fx.Node:
    """What a row of reshapes that ends in this node starts from; itself, if it is none."""
    while word_of(node) in RESHAPING - {"expand", "expand_as"} and node.args:
        assert isinstance(node.args[0], fx.Node)
        node = node.args[0]
    return node


def _shuffle(node: fx.Node, traced: Traced) -> tuple[fx.Node, list[nn.Module]] | None:
    """``view(B, g, C/g, H, W).transpose(1, 2).reshape(B, C, H, W)``."""
    turned = node.args[0]
    while isinstance(turned, fx.Node) and word_of(turned) in ("contiguous", "clone"):
        turned = turned.args[0]
    if not isinstance(turned, fx.Node) or word_of(turned) not in ("transpose", "permute", "swapaxes"):
        return None
    opened = turned.args[0]
    if not isinstance(opened, fx.Node) or not opened.args or not isinstance(opened.args[0], fx.Node):
        return None
    source = opened.args[0]
    shape, middle, after = traced.shape(source), traced.shape(opened), traced.shape(node)
    split = len(shape) == 4 and len(middle) == 5 and middle[0] == BATCH and middle[3:] == shape[2:] and after == shape
    if not split or traced.shape(turned) != (BATCH, middle[2], middle[1], *middle[3:]):
        return None
    return source, [nn.ChannelShuffle(middle[1])]
