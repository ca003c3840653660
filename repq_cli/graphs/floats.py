"""What of a foreign network stays in floating point, by the names and patterns that people give."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from repq_cli.errors import ConfigError
from repq_cli.graphs.adopted import Adopted
from repq_cli.quant.float_leaf import is_kept
from repq_cli.reparam.transposed import LAYERS


def named(net: nn.Module, keep_float: Sequence[str]) -> tuple[str, ...]:
    """The modules that names and patterns, ``head.*``, fit. Raises ConfigError for one that fits none."""
    names = [name for name, _ in net.named_modules() if name]
    fitting = {pattern: [name for name in names if fnmatchcase(name, pattern)] for pattern in keep_float}
    unknown = [pattern for pattern, found in fitting.items() if not found]
    if unknown:
        raise ConfigError(f"keep_float names {', '.join(unknown)}, which this network does not have.")
    return tuple(dict.fromkeys(name for found in fitting.values() for name in found))


def kept_of(adopted: Adopted, kept: Sequence[str]) -> tuple[str, ...]:
    """The modules of ``adopted`` that hold what was asked to stay in floating point, and nothing else."""
    found = list(kept)
    for name, module in adopted.named_modules():
        if not isinstance(module, LAYERS):
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
