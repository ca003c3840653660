"""Networks that are not of repq's blocks: what the door makes of them before anything else."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from torch import Tensor, nn

from repq_cli.errors import ConfigError
from repq_cli.graphs.adopt import adopt
from repq_cli.graphs.adopted import Adopted
from repq_cli.modes.compose import is_kept
from repq_cli.quant.layers import QuantLayer
from repq_cli.reparam.block import Block


class Own(NamedTuple):
    """A network of blocks. kept: the names of its modules that stay in floating point."""

    net: nn.Module
    kept: tuple[str, ...]


def own(net: nn.Module, example: Tensor, keep_float: Sequence[str] = ()) -> Own:
    """``net`` itself where it is of repq's blocks, with ``edges()``; any other as one that is.

    keep_float  names of modules of ``net``, also as patterns: ``head.*``

    Raises ConfigError for a network that is quantized already, names that fit none of its modules, and a forward pass
    that cannot be followed.
    """
    if any(isinstance(module, QuantLayer) for module in net.modules()):
        raise ConfigError("This network is quantization-aware already: give the one that it was prepared from.")
    kept = _named(net, keep_float)
    if hasattr(net, "edges") and any(isinstance(module, Block) for module in net.modules()):
        return Own(net, kept)
    adopted = adopt(net, example, kept)
    if not any(isinstance(module, Block | nn.Linear) for module in adopted.modules()):
        raise ConfigError(f"{type(net).__name__} has no convolution and no linear layer that could be quantized.")
    return Own(adopted, _kept_of(adopted, kept))


def _named(net: nn.Module, keep_float: Sequence[str]) -> tuple[str, ...]:
    """The modules that the names and patterns fit."""
    names = [name for name, _ in net.named_modules() if name]
    fitting = {pattern: [name for name in names if fnmatchcase(name, pattern)] for pattern in keep_float}
    unknown = [pattern for pattern, found in fitting.items() if not found]
    if unknown:
        raise ConfigError(f"keep_float names {', '.join(unknown)}, which this network does not have.")
    return tuple(dict.fromkeys(name for found in fitting.values() for name in found))


def _kept_of(adopted: Adopted, kept: Sequence[str]) -> tuple[str, ...]:
    """The modules of ``adopted`` that hold what was asked to stay in floating point, and nothing else."""
    found = list(kept)
    for name, module in adopted.named_modules():
        if not isinstance(module, Block | nn.Linear):
            continue
        inside = [adopted.foreign_names.get(f"{name}.{key}") for key, _ in module.named_parameters()]
        theirs = [is_kept(parameter, kept) for parameter in inside if parameter is not None]
        if theirs and all(theirs):
            found.append(name)
        elif any(theirs):
            parts = sorted({parameter.rpartition(".")[0] for parameter in inside if parameter is not None})
            raise ConfigError(
                f"keep_float names a part of {name}, which is one convolution: name all of it ({', '.join(parts)})."
            )
    return tuple(found)
