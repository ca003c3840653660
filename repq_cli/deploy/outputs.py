"""What a deployed network gives: a tensor, or lists and dicts of tensors, as its description says by names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from repq_cli.answers import leaves

T = TypeVar("T")
DEEPEST, MOST = 4, 256  # of lists in lists, and of tensors


def made(output: Any, function: Callable[[str], T]) -> Any:
    """The same structure, with what ``function`` makes of every name.

    >>> made({"boxes": "a", "maps": ["b", "c"]}, str.upper)
    {'boxes': 'A', 'maps': ['B', 'C']}
    """
    if isinstance(output, dict):
        return {key: made(item, function) for key, item in output.items()}
    return [made(item, function) for item in output] if isinstance(output, list) else function(output)


def is_legal(output: Any, depth: int = 0) -> bool:
    """Whether it is a structure of names, neither empty nor too large."""
    if isinstance(output, str):
        return True
    if depth == DEEPEST or not isinstance(output, dict | list):
        return False
    items = list(output.values()) if isinstance(output, dict) else output
    legal = bool(items) and len(items) <= MOST and all(is_legal(item, depth + 1) for item in items)
    return legal and len(list(leaves(output))) <= MOST
