"""Which training steps are timed, as data. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from repq_cli.modes.catalogue import mode_named
from repq_cli.modes.catalogue.plain import Plain
from repq_cli.modes.catalogue.repq import RepQBN, RepQBNEst

Stage = Literal["fp", "qat", "convolutions"]
Precision = Literal["fp32", "bf16", "fp16"]
Peer = Literal["lsq", "brevitas"]

NO_REP, PLAIN, OURS = "none", Plain.name, "repq"
OF_OTHER_PRECISIONS = (RepQBNEst.name,)  # modes that are timed in other precisions than the first, beside Plain
PEERS: dict[Peer, str] = {"lsq": "textbook LSQ", "brevitas": "Brevitas"}


@dataclass(frozen=True)
class Step:
    """One kind of training step.

    stage       ``fp``, ``qat``, or the ``convolutions`` of a RepQ-BN step alone, forward and backward: those that its
                statistics need, and the merged one
    rep, mode   ``none`` for ordinary convolutions; the mode is empty in FP
    quant       a name of ``configs/quant``, empty in FP
    by          ``repq``, or the peer whose way of quantizing it is
    """

    model: str
    stage: Stage
    rep: str = NO_REP
    mode: str = ""
    quant: str = ""
    precision: Precision = "fp32"
    compiled: bool = False
    by: str = OURS

    @property
    def column(self) -> str:
        """``eager``, ``compiled``, ``bf16 compiled``."""
        words = ("" if self.precision == "fp32" else self.precision, "compiled" if self.compiled else "eager")
        return " ".join(filter(None, words))

    @property
    def label(self) -> str:
        """What it is, in words: ``FP repvgg``, ``Plain QAT``, ``RepQ-BN acnet``."""
        if self.by in PEERS:
            return f"{PEERS[self.by]} QAT"
        if self.stage == "convolutions":
            return f"convolutions of RepQ-BN {self.rep}"
        if self.stage == "fp":
            return f"FP {PLAIN if self.rep == NO_REP else self.rep}"
        return f"{mode_named(self.mode).title} {'QAT' if self.mode == PLAIN else self.rep}"

    def of(self, **changes: object) -> Step:
        """The same with other fields."""
        return replace(self, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Choices:
    """What is to be compared; Plain, in FP and in QAT, always is.

    precisions: the first is timed in full, others for Plain and RepQ-BNEst alone.
    """

    reps: Sequence[str]
    modes: Sequence[str]
    quants: Sequence[str]
    precisions: Sequence[Precision]
    compiled: Sequence[bool]
    against: Sequence[Peer]

    def steps(self, model: str, fits: Callable[[str, str, str], bool]) -> list[Step]:
        """The training steps of one model; ``fits(rep, mode, quant)`` says which combinations there are."""
        columns = [
            Step(model, "fp", precision=precision, compiled=compiled)
            for precision in self.precisions
            for compiled in self.compiled
        ]
        return list(dict.fromkeys(step for column in columns for step in self._column(column, fits)))

    def _column(self, plain: Step, fits: Callable[[str, str, str], bool]) -> Iterator[Step]:
        full = plain.precision == self.precisions[0]
        yield plain
        yield from (plain.of(rep=rep) for rep in self.reps if full)
        for quant in self.quants:
            qat = plain.of(stage="qat", mode=PLAIN, quant=quant)
            yield qat
            yield from (qat.of(by=peer) for peer in self.against if full)
            for rep in self.reps:
                for mode in self.modes:
                    if (full or mode in OF_OTHER_PRECISIONS) and fits(rep, mode, quant):
                        yield qat.of(rep=rep, mode=mode)
                        if full and mode == RepQBN.name:
                            yield plain.of(stage="convolutions", rep=rep, compiled=False)
