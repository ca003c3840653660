"""When a network that computes otherwise is still the deployed one: the rule of whatever compares the two."""

from __future__ import annotations

from collections.abc import Mapping

ANSWERS = 1000  # of which one may be another
DECIBELS = 0.05  # by which PSNR on a set may be another


def too_many_others(others: int, answers: int) -> str | None:
    """What is wrong where so many answers are others; None up to one in a thousand, rounded down.

    >>> too_many_others(1, 999)
    '1 of 999 answers differ, and 0 may: one in a thousand'
    >>> too_many_others(1, 1000), too_many_others(2, 2500)
    (None, None)
    """
    allowed = answers // ANSWERS
    if others <= allowed:
        return None
    return f"{others} of {answers} answers differ, and {allowed} may: one in a thousand"


def sets_with_too_many(others: Mapping[str, tuple[int, int]]) -> str | None:
    """What is wrong with which evaluation sets, of ``(others, answers)`` each: a large one excuses no small one.

    >>> sets_with_too_many({"val": (0, 5000), "test": (5, 24)})
    'on test 5 of 24 answers differ, and 0 may: one in a thousand'
    """
    found = {name: too_many_others(*counts) for name, counts in others.items()}
    return "; ".join(f"on {name} {problem}" for name, problem in found.items() if problem) or None


def is_another_psnr(psnr: float, reference: float) -> bool:
    """Whether PSNR on a set differs by too much, or is no number; infinite: that of identical pictures."""
    return psnr != reference and not abs(psnr - reference) <= DECIBELS
