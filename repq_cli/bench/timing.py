"""Times of calls that take turns, so that whatever slows the machine slows all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Literal, NamedTuple, TypeVar

SHORTEST = 0.02  # seconds: a call is repeated until it takes as long, beside which the clock's grain is nothing
MOST_REPEATS = 1000
PAUSE = 0.05  # seconds before a turn: worker threads of the one before go on looking for work for a while

Clock = Literal["wall", "cpu"]
CLOCKS: dict[str, Callable[[], float]] = {
    "wall": lambda: time.perf_counter(),
    "cpu": lambda: time.process_time(),  # of this process alone: for one thread on a machine that does other things
}
Key = TypeVar("Key", bound=Hashable)


def nothing() -> None:
    """What need not be done."""


class Spread(NamedTuple):
    """Seconds of a call over the rounds."""

    median: float
    low: float
    high: float


def interleaved(
    calls: Mapping[Key, Callable[[], object]],
    rounds: int,
    after_round: Callable[[], object] = nothing,
    *,
    clock: Clock = "wall",
    finish: Callable[[], object] = nothing,
) -> dict[Key, list[float]]:
    """Seconds of each call, one value a round; in each round every call has its turn.

    A turn begins with a pause, then a call that does not count: threads wake up and caches fill.
    finish: waits for what calls have left to a GPU, before each look at the clock.
    """
    now = CLOCKS[clock]

    def timed(call: Callable[[], object], repeats: int) -> float:
        finish()
        start = now()
        for _ in range(repeats):
            call()
        finish()
        return (now() - start) / repeats

    repeats = {key: _repeats(call, timed) for key, call in calls.items()}
    seconds: dict[Key, list[float]] = {key: [] for key in calls}
    for _ in range(rounds):
        for key, call in calls.items():
            time.sleep(PAUSE)
            call()
            seconds[key].append(timed(call, repeats[key]))
        after_round()
    return seconds


def _repeats(call: Callable[[], object], timed: Callable[[Callable[[], object], int], float]) -> int:
    call()  # compiles, allocates
    return max(1, round(SHORTEST / max(timed(call, 1), SHORTEST / MOST_REPEATS)))


def spread(seconds: list[float]) -> Spread:
    """Median and quartiles.

    >>> spread([3.0, 1.0, 2.0, 5.0, 4.0])
    Spread(median=3.0, low=2.0, high=4.0)
    """
    if len(seconds) == 1:
        return Spread(*seconds * 3)
    low, median, high = statistics.quantiles(seconds, method="inclusive")
    return Spread(median, low, high)


def speedup(seconds: list[float], reference: list[float]) -> float:
    """How many times as fast as the reference: the median over the rounds of the ratio within a round.

    >>> speedup([1.0, 2.0, 1.0], [3.0, 6.0, 4.0])
    3.0
    """
    return statistics.median(other / own for own, other in zip(seconds, reference, strict=True))


def ratio_of_minima(seconds: list[float], reference: list[float]) -> float:
    """How many times as long as the reference: of the shortest of all rounds, which other work delays least.

    >>> ratio_of_minima([2.0, 3.0, 9.0], [4.0, 7.0, 8.0])
    0.5
    """
    return min(seconds) / min(reference)
