"""Other work on the same machine: how threads wait beside it, and when a run says that there is too much of it."""

from __future__ import annotations

import os

# What a user may have set to say how OpenMP's threads wait; the second is that of GCC's library, which torch brings.
WAIT_POLICY, SPIN_COUNT = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
SPINS = "10000"


def wait_briefly() -> None:
    """Have threads that wait for each other soon sleep, unless the user has said how. Has to come before torch does.

    By default they spin, and where another process has the core that the last of them needs, all others spin on: beside
    other work a step of training takes several times as long. To sleep at once costs as much again on an idle machine,
    where a network of many small operations wakes its threads all the time (docs/PERFORMANCE.md).
    """
    if not {WAIT_POLICY, SPIN_COUNT} & os.environ.keys():
        os.environ |= {WAIT_POLICY: "PASSIVE", SPIN_COUNT: SPINS}  # the first counts where the library is not GCC's


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load() -> float | None:
    """The average number of processes that ran or waited to in the last minute; None where the system has no such."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def hint(others: float | None, threads: int, available: int) -> str | None:
    """What helps a run of so many threads where more wants to run than there are cores; None where nothing does.

    >>> print(hint(8.9, 2, 2))
    A load of 8.9 on 2 cores: this run waits for other work. runtime.threads=1 suffers less from it than 2 threads.
    >>> hint(8.9, 1, 2) is hint(1.5, 2, 2) is hint(None, 2, 2) is None
    True
    """
    if others is None or others <= available or threads == 1:
        return None
    return (
        f"A load of {others:.1f} on {available} core{'' if available == 1 else 's'}: this run waits for other work. "
        f"runtime.threads=1 suffers less from it than {threads} threads."
    )
