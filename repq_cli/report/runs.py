"""Runs as tables see them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from repq_cli.modes.catalogue import AUTO

Status = Literal["done", "failed", "interrupted", "pruned", "unfinished"]


class Bits(NamedTuple):
    """Widths of weights and activations; 32 is float."""

    weight: int
    act: int


class Metric(NamedTuple):
    """What a run is judged by, and on which set."""

    name: str
    split: str
    higher_is_better: bool


class Measured(NamedTuple):
    """What a value of a row's ``metrics`` is of."""

    set: str
    scale: int | None
    name: str
    engine: str


@dataclass(frozen=True)
class Run:
    """One run.

    options: its configuration, flattened (``fp.epochs``), without what has no bearing on the result and without the
        columns of tables (mode and bits). Without a config.yaml, what its row says of quantizer and block.
    numbers: ``metric.fp``, ``metric.deployed``, and all of ``checks``, ``size``, ``cost`` and ``time``, under their
        dotted keys.
    identical: of how many pictures a mean of ``values`` says nothing, since they are those of the original.
    finished: ISO time, empty where the row has none. linked: a copy of an identical run (``lineage.same_as``).
    machine: what its times depend on. environment: what is known of machine, versions and sources, by name.
    error: why it failed, all of it. fp_file: where its FP net came from, if from a file.
    data_hash: of all its images. data_changed: whether it went on over images other than those that it began with.
    warnings: what is wrong with it though it is done. began: whether there is a step of training to tell of; False for
        those alone that failed or were stopped before one.
    """

    folder: str
    status: Status
    model: str
    rep: str
    mode: str
    data: str | None
    task: str | None
    seed: int | None
    bits: Bits
    options: Mapping[str, Any]
    configured: bool
    metric: Metric | None
    numbers: Mapping[str, float]
    values: Mapping[Measured, float]
    identical: Mapping[Measured, float]
    finished: str
    linked: bool
    machine: str
    environment: Mapping[str, str]
    error: str
    fp_file: str | None
    data_hash: str | None
    data_changed: bool
    warnings: tuple[str, ...] = ()
    began: bool = True

    @property
    def name(self) -> str:
        """The folder, and what ran in it."""
        return f"{self.folder} ({self.what})"

    @property
    def what(self) -> str:
        """What ran."""
        seed = "" if self.seed is None else f", seed {self.seed}"
        return f"{self.model}, rep {self.rep}, mode {self.mode}, {bits_label(self.bits)}{seed}"

    def number(self, key: str | Measured) -> float | None:
        """One of ``numbers`` or ``values``, or None where it was not measured."""
        return self.values.get(key) if isinstance(key, Measured) else self.numbers.get(key)


def compared(runs: Iterable[Run]) -> list[Run]:
    """Those that stand in tables and figures: none that ended before its first step, or before its mode was decided.

    What did not begin says nothing of its configuration, only of how it was started. Notes name it.
    """
    return [run for run in runs if run.began and run.mode != AUTO]


def bits_label(bits: Bits) -> str:
    """How tables call a pair of widths.

    >>> bits_label(Bits(4, 4)), bits_label(Bits(1, 32)), bits_label(Bits(32, 32))
    ('4 bit', 'w1a32', 'float')
    """
    if bits == (32, 32):
        return "float"
    return f"{bits.weight} bit" if bits.weight == bits.act else f"w{bits.weight}a{bits.act}"
