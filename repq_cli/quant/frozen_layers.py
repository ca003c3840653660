"""Networks whose quantized layers are frozen for a while, so that evaluation merges and quantizes kernels once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from repq_cli.quant.layers import KEPT, QuantLayer, quant_layers


@contextmanager
def frozen_layers(net: nn.Module) -> Iterator[None]:
    """Inside, eval mode computes with what every quantized layer of ``net`` is on entry; afterwards nothing is kept.

    Outside, each forward pass freezes each layer anew, so that it never computes with what has been: after a step of an
    optimiser, a loaded state or an edit by hand. Nothing of the kind may happen inside. Networks without quantized
    layers are let through; one that is frozen already stays so until the outermost context ends.

    Raises RuntimeError, on leaving, where a layer has been changed inside: what was computed did not follow it. Torch
    counts the changes itself, so that no value is looked at, for which a GPU would have to be waited.
    """
    layers = {name: layer for name, layer in quant_layers(net).items() if layer not in KEPT}
    before = {name: _changes(layer) for name, layer in layers.items()}
    KEPT.update({layer: layer.inference() for layer in layers.values()})
    try:
        yield
    finally:
        for layer in layers.values():
            del KEPT[layer]
    changed = [name for name, layer in layers.items() if _changes(layer) != before[name]]
    if changed:
        raise RuntimeError(
            f"{', '.join(changed)} changed while frozen, and outputs did not follow: leave frozen_layers before the "
            f"network's tensors are written."
        )


def _changes(layer: QuantLayer) -> list[tuple[int, int | None]]:
    """Which tensors a layer depends on, and how often each was written; of tensors of inference mode nobody counts."""
    return [(id(tensor), None if tensor.is_inference() else tensor._version) for tensor in layer.state()]
