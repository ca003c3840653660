"""Networks that do not change for a while, so that each kernel is merged once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from repq_cli.quant.frozen_layers import frozen_layers
from repq_cli.quant.layers import quant_layers
from repq_cli.reparam.branch import kept_sums


@contextmanager
def unchanging(net: nn.Module) -> Iterator[None]:
    """Inside, a network of quantized layers is frozen, and one of branches keeps its sums: nothing may change it."""
    with frozen_layers(net) if quant_layers(net) else kept_sums(net):
        yield
