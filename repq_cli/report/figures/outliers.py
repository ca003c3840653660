"""Axes that a diverged run does not ruin: what their limits leave out, which figures then show at the edge."""

from __future__ import annotations

from collections.abc import Sequence

SHARE = 3  # so many times longer an axis may become for a single course


def collapsed_below(values: Sequence[float]) -> float:
    """What lies below is so far from the rest that an axis with room for it would show nothing else.

    That is at most a third of ``values``, each time on the far side of a gap that takes more than half of the axis.

    >>> collapsed_below([10, 64, 99.1, 99.2, 99.3, 99.5]), collapsed_below([91.0, 92.0, 99.0])
    (99.1, 91.0)
    """
    kept = sorted(values)
    spare = len(kept) // 3
    while True:
        gaps = [(high - low, place) for place, (low, high) in enumerate(zip(kept, kept[1:], strict=False), 1)]
        gap, place = max(gaps, default=(0.0, 0))
        if place > spare or gap * 2 <= kept[-1] - kept[0]:
            return kept[0]
        kept, spare = kept[place:], spare - place


def readable(courses: Sequence[Sequence[float]], least: float) -> list[bool]:
    """Which of the courses an axis has to show from end to end; each holds a value at least, and the worse the larger.

    Left out are, of at most half of them, the worst, as long as the axis is ``SHARE`` times as long as for the others,
    which count as ``least`` long at least.

    >>> readable([[10, 3, 2], [9, 2], [40, 90, 90]], least=2), readable([[90, 3], [91, 90]], least=2)
    ([True, True, False], [True, True])
    """
    kept = list(range(len(courses)))
    while len(kept) > len(courses) - len(courses) // 2:
        worst = max(kept, key=lambda number: max(courses[number]))
        others = _length([courses[number] for number in kept if number != worst])
        if SHARE * max(others, least) > _length([courses[number] for number in kept]):
            break
        kept.remove(worst)
    return [number in kept for number in range(len(courses))]


def _length(courses: Sequence[Sequence[float]]) -> float:
    return max(map(max, courses)) - min(map(min, courses))
