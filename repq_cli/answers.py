"""What a network gives: a tensor, or lists, tuples and dicts of tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor


def leaves(answer: Any) -> Iterator[Any]:
    """All that lists, tuples and dicts hold, in order.

    >>> list(leaves({"boxes": 1, "maps": (2, [3])}))
    [1, 2, 3]
    """
    if isinstance(answer, dict | list | tuple):
        for item in answer.values() if isinstance(answer, dict) else answer:
            yield from leaves(item)
    else:
        yield answer


def tensors(answer: Any) -> list[Tensor]:
    """All tensors of an answer, in order."""
    return [item for item in leaves(answer) if isinstance(item, Tensor)]


def mapped(answer: Any, function: Callable[[Any], Any]) -> Any:
    """The same structure, with what ``function`` makes of each leaf.

    >>> mapped({"boxes": 1, "maps": (2, [3])}, lambda number: 10 * number)
    {'boxes': 10, 'maps': (20, [30])}
    """
    if isinstance(answer, dict):
        return type(answer)((key, mapped(item, function)) for key, item in answer.items())
    if isinstance(answer, list | tuple):
        items = [mapped(item, function) for item in answer]
        return type(answer)(*items) if hasattr(answer, "_fields") else type(answer)(items)
    return function(answer)
