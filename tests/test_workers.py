"""Worker processes stay from one epoch to the next, and change nothing."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable
from pathlib import Path

import torch
from test_data import write_folder

from repq_cli.data import image_folder
from repq_cli.data.base import Batch


def assert_same(found: Iterable[Batch], expected: Iterable[Batch]) -> None:
    for (x, y), (x2, y2) in zip(found, expected, strict=True):
        assert torch.equal(x, x2) and torch.equal(y, y2)


def test_workers_stay_for_the_next_reading_and_each_of_several_has_its_own(tmp_path: Path) -> None:
    """Also where a reading is broken off, and the next one begins in the middle."""
    root = str(write_folder(tmp_path))
    alone, data = (image_folder.load(root, val_fraction=0.34, cache_mib=0, workers=workers) for workers in (0, 2))
    others = {process.pid for process in multiprocessing.active_children()}

    def there() -> set[int | None]:
        return {process.pid for process in multiprocessing.active_children()} - others

    list(data.train.training_batches(2, 0))
    first = there()
    assert len(first) == 2
    for epoch in range(2):
        assert_same(data.train.training_batches(2, epoch, start=epoch), alone.train.training_batches(2, epoch, epoch))
        assert there() == first
    batches, expected = data.train.training_batches(2, 2), alone.train.training_batches(2, 2)
    assert_same([next(batches)], [next(expected)])
    assert_same(data.val.batches(1), alone.val.batches(1))
    assert len(there()) == 4
    assert_same(batches, expected)
    next(data.train.training_batches(2, 3))
    assert_same(data.train.training_batches(2, 3), alone.train.training_batches(2, 3))
    del data, batches
    assert not there()
