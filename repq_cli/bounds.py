"""Bounds of numbers in the configuration, written into type annotations: ``Annotated[int, Range(1)]``."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """Finite numbers from ``low`` to ``high`` (None: no bound); ``open_low``, ``open_high`` exclude the ends."""

    low: float
    high: float | None = None
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: float) -> bool:
        """Whether ``value`` is inside.

        >>> Range(0, 1).holds(1), Range(0, None, open_low=True).holds(0)
        (True, False)
        """
        above = value > self.low if self.open_low else value >= self.low
        below = self.high is None or (value < self.high if self.open_high else value <= self.high)
        return math.isfinite(value) and above and below

    def __str__(self) -> str:
        if self.high is None:
            return f"{'above' if self.open_low else 'at least'} {self.low:g}"
        if self.open_low and self.open_high:
            return f"between {self.low:g} and {self.high:g}"
        ends = (
            f"{end:g}{' (excluded)' * is_open}"
            for end, is_open in ((self.low, self.open_low), (self.high, self.open_high))
        )
        return "from " + " to ".join(ends)
