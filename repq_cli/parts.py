"""How a batch is divided: over ranks, and on each of them over turns whose gradients add up."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Part(NamedTuple):
    """What one of ``ranks`` has of every batch, in so many ``turns``.

    A turn takes every ``turns``-th image of the batch, and a rank every ``ranks``-th image of that: whatever the number
    of ranks, a turn consists of the same images, and so do its first ones, of which statistics may be taken.
    """

    rank: int = 0
    ranks: int = 1
    turns: int = 1

    @property
    def is_whole(self) -> bool:
        """Whether it is all of a batch, in its own order."""
        return self.ranks == self.turns == 1

    def of_turn(self, turn: int, count: int) -> range:
        """Which images of a batch of ``count`` the rank has in a turn.

        >>> [list(Part(rank, 2, 2).of_turn(0, 10)) for rank in (0, 1)], list(Part(1, 2, 2).of_turn(1, 10))
        ([[0, 4, 8], [2, 6]], [3, 7])
        """
        return range(count)[turn :: self.turns][self.rank :: self.ranks]

    def indices(self, count: int) -> Tensor:
        """Which images of a batch of ``count`` the rank has, turn after turn."""
        return torch.tensor([index for turn in range(self.turns) for index in self.of_turn(turn, count)])


WHOLE = Part()
