"""Networks that are not of repq's blocks: what the door makes of them before anything else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from repq_cli.errors import ConfigError
from repq_cli.graphs.adopt import adopt
from repq_cli.graphs.floats import named
from repq_cli.quant.layers import QuantLayer
from repq_cli.reparam.block import Block
from repq_cli.reparam.transposed import LAYERS


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
    net = getattr(net, "_orig_mod", net)  # what torch.compile was given
    if any(isinstance(module, QuantLayer) for module in net.modules()):
        raise ConfigError("This network is quantization-aware already: give the one that it was prepared from.")
    if hasattr(net, "edges") and any(isinstance(module, Block) for module in net.modules()):
        return Own(net, named(net, keep_float))
    adopted = adopt(net, example, keep_float)
    if not any(isinstance(module, LAYERS) for module in adopted.modules()):
        raise ConfigError(f"{type(net).__name__} has no convolution and no linear layer that could be quantized.")
    return Own(adopted, adopted.kept)
