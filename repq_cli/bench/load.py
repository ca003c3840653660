"""Whether the machine does other things while something is timed."""

from __future__ import annotations

UNEVEN = 0.5  # of a core: what a system does by itself


def hint(others: float | None, threads: int, available: int) -> str | None:
    """What is to be said of times that were taken with ``threads`` beside ``others``; None where there is room.

    >>> hint(1.0, 1, 2) is None
    True
    >>> print(hint(3.2, 1, 2))
    The machine does other things: a load of 3.2 beside this benchmark's own 1, on 2 cores. Times are unreliable.
    """
    if others is None or others + threads <= available + UNEVEN:
        return None
    return (
        f"The machine does other things: a load of {others:.1f} beside this benchmark's own {threads}, on {available} "
        f"core{'' if available == 1 else 's'}. Times are unreliable."
    )
