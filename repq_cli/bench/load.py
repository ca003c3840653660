"""Whether the machine does other things while something is timed."""

from __future__ import annotations

import os

UNEVEN = 0.5  # of a core: what a system does by itself


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load() -> float | None:
    """The average number of processes that ran or waited to in the last minute; None where the system has no such."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


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
