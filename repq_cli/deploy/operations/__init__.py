"""All that is known of each operation of deployed networks stands in one entry; this is where it is looked up.

Which modules and functions become them is said beside them by ``form``; of quantized layers in ``from_layers``.
"""

from __future__ import annotations

from repq_cli.deploy.operations import (
    constants,
    from_layers,
    functions,
    global_pools,
    layers,
    parts,
    pools,
    quantize,
    resize,
    shapes,
    softmax,
    sums,
    unary,
)
from repq_cli.deploy.operations.base import Operation

OPERATIONS: dict[str, Operation] = {
    entry.name: entry
    for entry in (
        quantize.Quantize(),
        *(layers.Conv(), layers.ConvTranspose(), layers.Linear()),
        *(sums.Add(), sums.ScaledAdd(), sums.Multiply(), sums.Concatenate(), constants.Arithmetic()),
        *(pools.AveragePool(), global_pools.GlobalAveragePool(), global_pools.AdaptiveAveragePool()),
        *(pools.MaxPool(), global_pools.GlobalMaxPool(), global_pools.AdaptiveMaxPool()),
        *(shapes.Flatten(), shapes.Reshape(), shapes.Permute(), shapes.ChannelShuffle(), parts.Slice(), parts.Pad()),
        *(shapes.PixelShuffle(), shapes.PixelUnshuffle(), resize.NearestUpsample(), resize.Resize()),
        *(*unary.ENTRIES, unary.PRELU, *functions.ENTRIES),
        *(softmax.Softmax(), softmax.LogSoftmax()),
    )
}
__all__ = ["OPERATIONS", "Operation", "from_layers"]
