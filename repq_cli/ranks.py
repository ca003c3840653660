"""Processes that work on one run together: what torchrun, or another launcher, says to each of them. Needs no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """This process among those of its run: ``rank`` of ``size``, and ``local_rank`` of those on its machine."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    attempt: int


def place() -> Place | None:
    """What the environment says, as torchrun sets it; None where nobody has started this process as one of several."""
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        return None
    number = {
        name: int(os.environ.get(name, "0"))
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")
    }
    rank, size, local, local_size, attempt = number.values()
    if "LOCAL_RANK" not in os.environ:  # one machine
        local, local_size = rank, size
    return Place(rank, size, local, local_size or 1, attempt)
