"""Worker processes that make images ahead of training, and stay from one epoch to the next."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from repq_cli.errors import DataError

Item = TypeVar("Item")


class Workers(Generic[Item]):
    """What ``collate`` makes of the items of each task, in the order of the tasks, whatever the number of processes.

    Processes that have done all tasks of a reading wait for the next one; of readings at the same time, such as
    validation inside an epoch, each has its own. A result that is text is a complaint, and raised as a DataError: an
    exception would arrive wrapped in a worker's traceback.
    """

    def __init__(
        self, dataset: Dataset[Any], collate: Callable[[list[Any]], Item | str], workers: int, pin: bool = False
    ) -> None:
        self.dataset, self.collate, self.workers, self.pin = dataset, collate, workers, pin
        self._idle: list[tuple[list[list[Any]], DataLoader[Any]]] = []
        weakref.finalize(self, self._idle.clear)  # at Python's end, too: workers do not hear a SIGTERM in training

    def worked(self, tasks: list[list[Any]]) -> Iterator[Item]:
        """Raises DataError with the first complaint."""
        wanted, loader = self._idle.pop() if self._idle else self._loader(min(self.workers, len(tasks)))
        wanted[:] = tasks
        with _no_warning_of_many():
            results = iter(loader)
        for result in results:
            if isinstance(result, str):
                raise DataError(result)
            yield result
        if loader.num_workers == self.workers > 0:  # else a long reading would have the few of a short one
            self._idle.append((wanted, loader))

    def _loader(self, workers: int) -> tuple[list[list[Any]], DataLoader[Any]]:
        """The list in which it looks for its tasks, and the loader."""
        wanted: list[list[Any]] = []
        with _no_warning_of_many():
            loader = DataLoader(
                self.dataset,
                batch_sampler=wanted,
                num_workers=workers,
                persistent_workers=workers > 0,
                # The loader draws a base seed for its workers; from a generator of its own, it leaves training's alone.
                generator=torch.Generator().manual_seed(0),
                collate_fn=self.collate,
                pin_memory=self.pin,
            )
        return wanted, loader


@contextmanager
def _no_warning_of_many() -> Iterator[None]:
    """Workers wait for disks and networks, so that there may be more of them than processors."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        yield
