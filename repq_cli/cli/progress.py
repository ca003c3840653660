"""How far a sweep has come before its first job: composing and checking thousands of runs takes minutes."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Iterable
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
FIRST, PERIOD = 3.0, 20.0  # seconds before the first line, and between two of them


def told(items: Iterable[Item], total: int, what: str, quiet: bool = False) -> Generator[Item, None, None]:
    """``items``, with a line that lives on a terminal, elsewhere with one now and then; without any where it is short.

    >>> list(told("ab", 2, "composing"))
    ['a', 'b']
    """
    if sys.stderr is not None and sys.stderr.isatty():
        yield from tqdm(items, what, total, leave=False, delay=FIRST, unit=" runs", disable=quiet)
        return
    due = time.monotonic() + FIRST
    for number, item in enumerate(items):
        if time.monotonic() >= due and not quiet:
            print(f"{what}: {number} of {total} runs", flush=True)
            due = time.monotonic() + PERIOD
        yield item
