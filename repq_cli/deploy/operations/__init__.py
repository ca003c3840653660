"""All that is known of each operation of deployed networks stands in one entry; this is where it is looked up."""

from __future__ import annotations

from repq_cli.deploy.operations import from_layers, layers, pools, quantize, shapes, sums, unary
from repq_cli.deploy.operations.base import Operation

OPERATIONS: dict[str, Operation] = {
    entry.name: entry
    for entry in (
        quantize.Quantize(),
        layers.Conv(),
        layers.ConvTranspose(),
        layers.Linear(),
        sums.Add(),
        pools.GlobalAveragePool(),
        pools.MaxPool(),
        shapes.Flatten(),
        shapes.PixelShuffle(),
        shapes.NearestUpsample(),
        *unary.ENTRIES,
    )
}
__all__ = ["OPERATIONS", "Operation", "from_layers"]
