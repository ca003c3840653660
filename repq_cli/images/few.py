"""A few of many files: what a trial of a run reads of its data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

Item = TypeVar("Item")
_most: ContextVar[int | None] = ContextVar("most", default=None)


@contextmanager
def at_most(count: int | None) -> Iterator[None]:
    """Within the block, no folder or class has more than so many files; None for all of them."""
    token = _most.set(count)
    try:
        yield
    finally:
        _most.reset(token)


def few(items: Sequence[Item]) -> list[Item]:
    """All of them, or as many as there may be, evenly spread.

    >>> with at_most(3):
    ...     few(range(12))
    [0, 4, 8]
    """
    most = _most.get()
    return list(items) if most is None or len(items) <= most else spread(items, most)


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """``count`` of them, evenly spread; some several times where there are fewer.

    >>> spread("abc", 5)
    ['a', 'a', 'b', 'b', 'c']
    """
    return [items[index * len(items) // count] for index in range(count)]
