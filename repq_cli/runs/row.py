"""The row of a run: summary.json, whose keys other people's scripts rely on."""

from __future__ import annotations

import math
import traceback
from datetime import datetime, timezone
from typing import Any

Row = dict[str, Any]


def now() -> str:
    """The time, in UTC, as rows have it."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def merge_metrics(old: list[Row], new: list[Row]) -> list[Row]:
    """``old`` with the values of ``new`` for what both measured, then what only ``new`` did."""

    def key(row: Row) -> tuple[Any, ...]:
        return tuple(row.get(name) for name in ("set", "scale", "name", "engine"))

    values = {key(row): row for row in old} | {key(row): row for row in new}
    return list(values.values())


def prune(value: Any) -> Any:
    """``value`` without None and non-finite numbers in its dicts.

    >>> prune({"a": 1, "b": None, "c": {"d": float("nan"), "e": [2]}})
    {'a': 1, 'c': {'e': [2]}}
    """
    if isinstance(value, dict):
        return {key: prune(item) for key, item in value.items() if not _absent(item)}
    if isinstance(value, list):
        return [prune(item) for item in value]
    return value


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def deployed_metric(row: Row) -> float:
    """What a sweeper judges a finished run by; infinite where all pictures were identical to their originals."""
    value = row["metric"].get("deployed")
    return math.inf if value is None else float(value)


def failure(error: BaseException) -> Row:
    """What a failed run's row says of its error."""
    return {"status": "failed", "error": str(error) or type(error).__name__, "traceback": traceback.format_exc()}
