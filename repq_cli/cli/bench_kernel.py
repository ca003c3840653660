"""``repq bench bench=xnor``: the binary kernel against torch's float32, as a table."""

from __future__ import annotations

import torch

from repq_cli.bench.timing import speedup, spread
from repq_cli.cli.bench_rounds import timed
from repq_cli.extras import extra
from repq_cli.memory import require_memory
from repq_cli.text import columns, milliseconds, times
from repq_cli.train.environment import environment


def kernel(batches: list[int], rounds: int) -> None:
    """Print the kernel's table."""
    with extra("xnor"):
        from repq_cli.bench.kernel import LAYERS, pairs
    images = sum(channels * side**2 for channels, side in LAYERS)
    require_memory(4 * images * sum(batches), f"batch={','.join(map(str, batches))}", "choose fewer images")
    torch.set_num_threads(1)
    found = pairs(batches)
    calls = {(name, index): call for name, both in found.items() for index, call in enumerate(both)}
    seconds = timed(calls, rounds, "xnor")
    lines = [["", "float32, ms", "binary, ms", "times as fast"]]
    for name in found:
        first, second = seconds[name, 0], seconds[name, 1]
        medians = [milliseconds(spread(both).median * 1e3) for both in (first, second)]
        lines.append([name, *medians, times(speedup(second, first))])
    print(f"{environment()['cpu']}, one thread, medians of {rounds} interleaved rounds")
    print(columns(lines, 1))
