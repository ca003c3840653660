"""Values against type annotations, in words: what the configuration's checks are made of."""

from __future__ import annotations

import difflib
import functools
import math
import types
import typing
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from repq_cli.bounds import Range

LARGEST, LARGEST_INT = 1e12, 2**63 - 1  # whose products float32 holds; of the integers that torch computes with


def mistake(annotation: Any, value: Any) -> str | None:
    """What is wrong with ``value`` as a sentence's predicate, or None.

    >>> mistake(Annotated[int, Range(1)], 0)
    'must be a whole number, at least 1'
    >>> mistake(Literal["int", "fp"], "itn")
    "must be one of int, fp; did you mean 'int'?"
    >>> mistake(float | None, 3) is None
    True
    """
    if legal(annotation, value):
        return None
    hint = "; it is too large to be computed with" if _is_number(value) and LARGEST < abs(value) < math.inf else ""
    choices = _choices(annotation)
    if choices:
        near = nearest(value, choices)
        hint = (
            f"; did you mean '{near}'?"
            if isinstance(value, str) and near
            else f"; the nearest is {near}"
            if near
            else ""
        )
    return f"must be {describe(annotation)}{hint}"


def legal(annotation: Any, value: Any) -> bool:
    """Whether ``value`` is of the annotated type; an int may stand for a float, a bool never for a number."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return True
    if origin is Annotated:
        return legal(arguments[0], value) and all(
            bound.holds(value) for bound in arguments[1:] if isinstance(bound, Range) and value is not None
        )
    if origin in (Union, types.UnionType):
        return any(legal(option, value) for option in arguments)
    if origin is Literal:
        return any(type(value) is type(option) and value == option for option in arguments)
    if origin in (list, tuple):
        return isinstance(value, (list, tuple)) and _items_legal(origin, arguments, value)
    if origin is dict:
        names, items = arguments
        return isinstance(value, dict) and all(legal(names, key) and legal(items, value[key]) for key in value)
    if annotation is type(None):
        return value is None
    if annotation in (float, int) and _is_number(value):
        return isinstance(value, (int, annotation)) and abs(value) <= (LARGEST if annotation is float else LARGEST_INT)
    if annotation in (float, int):
        return False
    return isinstance(value, annotation)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _items_legal(origin: type, arguments: tuple[Any, ...], value: Iterable[Any]) -> bool:
    items = list(value)
    if origin is list:
        return all(legal(arguments[0], item) for item in items)
    return len(items) == len(arguments) and all(map(legal, arguments, items))


def describe(annotation: Any) -> str:
    """The legal values in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return ", ".join([describe(arguments[0]), *(str(bound) for bound in arguments[1:] if isinstance(bound, Range))])
    if origin in (Union, types.UnionType):
        return " or ".join(describe(option) for option in arguments)
    if origin is Literal:
        words = [str(option).lower() if isinstance(option, bool) else str(option) for option in arguments]
        return words[0] if len(words) == 1 else f"one of {', '.join(words)}"
    if origin is list:
        return f"a list, each item {describe(arguments[0])}"
    if origin is tuple:
        return f"a list of {len(arguments)}, each item {describe(arguments[0])}"
    if origin is dict:
        return f"{{NAME: …}} with each item {describe(arguments[1])}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return names.get(annotation, str(annotation))


def _choices(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [choice for option in get_args(annotation) for choice in _choices(option)]


def nearest(value: Any, choices: Iterable[Any]) -> Any | None:
    """The choice that ``value`` was probably meant to be, or None.

    >>> nearest("w4b4", ["w2a2", "w4a4"]), nearest(9, [2, 4, 8, 32])
    ('w4a4', 8)
    """
    options = list(choices)
    numbers = [option for option in options if isinstance(option, (int, float))]
    if isinstance(value, (int, float)) and not isinstance(value, bool) and numbers:
        return min(numbers, key=lambda option: abs(option - value))
    close = difflib.get_close_matches(str(value), [str(option) for option in options], 1, 0.5)
    return close[0] if close else None


def bare(annotation: Any) -> Any:
    """The type itself, without what is said of it."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def annotations_of(target: Any) -> dict[str, Any]:
    """Resolved annotations of a function's parameters or a dataclass's fields, bounds included."""
    return dict(_hints(target))


@functools.cache
def _hints(target: Any) -> dict[str, Any]:
    return typing.get_type_hints(target, include_extras=True)
