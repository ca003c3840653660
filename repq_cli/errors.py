"""Errors that a user can act on, each with the exit code of the command line."""

from __future__ import annotations

import re

# What torch, ONNX Runtime, C++ and the system say.
NO_MEMORY = re.compile(r"(can't|cannot|failed to) allocate memory|out of memory|not enough memory|bad_alloc", re.I)


class RepqError(Exception):
    """A run failed; the message is a full sentence with the offending value and the fix."""

    exit_code = 1


class ConfigError(RepqError):
    """Wrong usage or configuration."""

    exit_code = 2


class DataError(RepqError):
    """Missing or broken data, files, or environment."""

    exit_code = 3


class CheckError(RepqError):
    """A check failed: merge, freeze, or a loss that is not finite."""

    exit_code = 4


class RanksError(RepqError):
    """Another process of the run has failed, and with it this one."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, after a checkpoint. Not an ``Exception``: it has to end a whole sweep, not one job of it.

    told: whether it has been said how to go on.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.exit_code = 128 + signal_number
        self.told = False


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, whoever noticed."""
    return isinstance(error, MemoryError) or NO_MEMORY.search(str(error)) is not None
