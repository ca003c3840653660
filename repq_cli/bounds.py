"""Bounds of numbers in the configuration, written into type annotations: ``Annotated[int, Range(1)]``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """From ``low`` to ``high`` (None: no bound); ``open_low`` excludes ``low`` itself."""

    low: float
    high: float | None = None
    open_low: bool = False

    def holds(self, value: float) -> bool:
        """Whether ``value`` is inside.

        >>> Range(0, 1).holds(1), Range(0, None, open_low=True).holds(0)
        (True, False)
        """
        above = value > self.low if self.open_low else value >= self.low
        return above and (self.high is None or value <= self.high)

    def __str__(self) -> str:
        if self.high is None:
            return f"{'above' if self.open_low else 'at least'} {self.low:g}"
        return f"from {self.low:g} to {self.high:g}"
