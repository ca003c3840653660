"""``repq train`` as one of several processes, which torchrun has started."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from repq_cli.cli.command_line import CommandLine
from repq_cli.config import Config
from repq_cli.errors import ConfigError, Interrupted, RanksError, RepqError
from repq_cli.ranks import Place, place
from repq_cli.runs.folder import RunFolder


def as_rank(where: Place, train: Callable[[], int]) -> int:
    """Rank 0 trains as any process does; what it carries out the others hear of. Returns the exit code."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # what has died is said in a sentence, not by stacks of C++
    from repq_cli.train.world import world

    world()
    if where.rank > 0:
        return _quietly(_follow)
    try:
        return train()
    finally:
        with suppress(RanksError):
            world().share(None)  # for those that still wait to hear of a run


def begun_before() -> Path | None:
    """The folder of a run that an earlier attempt of the same launcher has begun: it goes on there."""
    where = place()
    if where is None or where.attempt == 0:
        return None
    from repq_cli.train.world import Ranks, world  # with torch, which a mistake of the command line need not wait for

    ranks = world()
    folder = ranks.begin() if isinstance(ranks, Ranks) else None
    return folder if folder is not None and RunFolder(folder).is_used else None


def refuse_what_ranks_cannot(line: CommandLine, is_sweep: bool = False) -> None:
    """Raise ConfigError for a sweep by several processes at once, each of which would carry it out."""
    where = place()
    if where is not None and where.size > 1 and (is_sweep or line.multirun):
        raise ConfigError(
            f"A sweep (-m) is started once, and torchrun starts it {where.size} times: leave torchrun out, or name one "
            f"run."
        )


def processes_to_start(config: Config, typed: list[str]) -> int:
    """How many processes a run wants that is still to be started as several; 1: it is carried out here.

    Raises ConfigError where torchrun has started another number than was asked for.
    """
    where, devices = place(), config.runtime.devices
    if where is None:
        return devices
    if "runtime.devices" in typed and devices != where.size:
        raise ConfigError(
            f"runtime.devices={devices} is not the number of processes that torchrun has started, {where.size}: leave "
            f"it out."
        )
    return 1


def _follow() -> int:
    from repq_cli.build import checked
    from repq_cli.cli.preflight import taken
    from repq_cli.train.runner import follow
    from repq_cli.train.world import world

    task = world().share()
    if task is not None:
        follow(taken(checked(task["config"])), task["data"])
    return 0


def _quietly(carry_out: Callable[[], int]) -> int:
    """What goes wrong is said by rank 0, which hears of it; only where that one is gone, here."""
    from repq_cli.train.world import Ranks, world

    try:
        return carry_out()
    except Interrupted as interruption:
        interruption.told = True
        raise
    except Exception as error:
        ranks = world()
        assert isinstance(ranks, Ranks)
        ranks.told(error)
        if ranks.speaks():
            print(f"repq: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, RepqError) else 1
