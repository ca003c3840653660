#!/usr/bin/env python3
"""Images a second that ``data=imagenet`` reads, by workers, from class folders or shards: ROOT/train and ROOT/val.

    .venv/bin/python scripts/time_reading.py ROOT [ROOT ...] [--size 32] [--workers 0,1,2] [--rounds 5]

Each line: the fastest of the rounds, which take turns; the processor time of an image, workers' included; and how long
the first batch of an epoch is waited for, of workers that start, and of those that are there from the epoch before.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

from repq_cli.data.base import Data
from repq_cli.data.imagenet import load

BATCH = 64


def processor_time() -> float:
    """Of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def first_and_all(data: Data) -> tuple[float, float]:
    """Seconds to the first batch of an epoch, and to the last."""
    start = time.perf_counter()
    batches = data.train.training_batches(BATCH, seed=0)
    next(batches)
    first = time.perf_counter() - start
    for _ in batches:
        pass
    return first, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("roots", nargs="+", type=Path)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--workers", type=lambda text: [int(part) for part in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    cases = [(root, workers) for root in asked.roots for workers in asked.workers]
    found: dict[tuple[Path, int], list[tuple[float, ...]]] = {case: [] for case in cases}
    images = 0
    for _ in range(asked.rounds):
        for root, workers in cases:
            data = load(str(root), asked.size, asked.size * 8 // 7, workers=workers)
            before = processor_time()
            first, _ = first_and_all(data)
            again, whole = first_and_all(data)
            images = data.train.steps(BATCH) * BATCH
            del data  # with its workers, whose processor time counts when they have ended
            found[root, workers].append((whole / images, (processor_time() - before) / (2 * images), first, again))
    print(f"{'root':24} workers  images/s  ms CPU an image  first batch, ms: starting  there")
    for (root, workers), rounds in found.items():
        each, used, first, again = (min(values) for values in zip(*rounds, strict=True))
        print(f"{root.name:24} {workers:7} {1 / each:9.0f} {used * 1e3:16.2f} {first * 1e3:26.0f} {again * 1e3:6.0f}")


if __name__ == "__main__":
    main()
