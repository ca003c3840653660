"""How the batches of training are spread over the ranks of a run, and on each over turns whose gradients add up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from repq_cli.collective import Shared
from repq_cli.config import Config
from repq_cli.data.base import Batch
from repq_cli.errors import ConfigError
from repq_cli.parts import Part


class Turn(NamedTuple):
    """Some images of a batch that are computed together.

    share: of the update's images, those of this rank's turn.  weight: of its mean loss, where the gradients of all
    turns are added and those of all ranks averaged: the update is then that of the mean over the whole batch.
    shared: what other ranks have of the same; None where a batch is this process' own.
    """

    batch: Batch
    share: float = 1.0
    weight: float = 1.0
    shared: Shared | None = None
    last: bool = True


def require_images(config: Config, ranks: int) -> None:
    """Raise ConfigError where a batch has not an image for every rank in every turn, statistics' images included.

    And for a compiled network of several ranks.
    """
    turns, batch = config.runtime.accumulate, config.data.batch_size
    if ranks * turns > batch:
        raise ConfigError(
            f"data.batch_size={batch} has not an image for each of {ranks} processes in each of {turns} turns "
            f"(runtime.accumulate): use data.batch_size={ranks * turns} or more."
        )
    if config.runtime.compile and ranks > 1:
        raise ConfigError(
            f"runtime.compile=true does not go with {ranks} processes, which has not been shown to train as one "
            f"does: use runtime.compile=false."
        )
    images = config.mode.statistics_images(batch // turns)
    if ranks > images:
        raise ConfigError(
            f"mode.stats_fraction={config.mode.stats_fraction} leaves {images} images of a turn for statistics, fewer "
            f"than {ranks} processes: use {ranks * turns / batch:.2g} or more."
        )


class Spread:
    """Batches that one process takes as they are."""

    ranks, turns = 1, 1

    def turns_of(self, batch: Batch) -> Iterator[Turn]:
        """What of a batch is computed together, in order."""
        yield Turn(batch)


class Divided(Spread):
    """Batches of ``batch_size`` images, of which this rank reads its ``part``, turn after turn.

    statistics: whether those of a turn are of all ranks' images; else a rank's are its own.
    """

    def __init__(self, part: Part, batch_size: int, statistics: bool = True) -> None:
        self.ranks, self.turns = part.ranks, part.turns
        self.sizes = [len(part.of_turn(turn, batch_size)) for turn in range(part.turns)]
        images = [len(range(turn, batch_size, part.turns)) for turn in range(part.turns)]
        self.shared = [
            Shared(part.rank, part.ranks, of_all, batch_size) if statistics else Shared(0, 1, own, batch_size)
            for own, of_all in zip(self.sizes, images, strict=True)
        ]
        self.batch_size = batch_size

    def turns_of(self, batch: Batch) -> Iterator[Turn]:
        """Raises ConfigError for data that gives another part than it was asked for."""
        x, targets = batch
        if len(x) != sum(self.sizes):
            raise ConfigError(
                f"The data gives {len(x)} images where this rank wants {sum(self.sizes)} of "
                f"data.batch_size={self.batch_size}: its training_batches has to give the part that divided(part) "
                f"was asked for."
            )
        pieces = zip(x.split(self.sizes), targets.split(self.sizes), self.sizes, self.shared, strict=True)
        for turn, (images, wanted, size, shared) in enumerate(pieces, 1):
            share = size / self.batch_size
            yield Turn((images, wanted), share, share * self.ranks, shared, turn == self.turns)
