"""What training costs and is meant to cost, as ratios of measured times and bytes. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from repq_cli.bench.steps import NO_REP, OURS, PEERS, PLAIN, Step
from repq_cli.bench.timing import ratio_of_minima, speedup
from repq_cli.modes.catalogue.repq import RepQBN, RepQBNEst

EAGER, COMPILED = "eager", "compiled"


class Ratio(NamedTuple):
    """The median over the rounds of the ratio within a round, and the ratio of the shortest of all rounds."""

    median: float
    minima: float


class Goal(NamedTuple):
    """A line: ``name`` says what is divided by what; ``ratios`` and the most that they may be, by column."""

    name: str
    ratios: Mapping[str, Ratio]
    at_most: Mapping[str, float]


class _Rule(NamedTuple):
    """Steps, what they are divided by, and the most that may come out, by column."""

    holds: Callable[[Step], bool]
    reference: Callable[[Step], Step]
    what: str
    at_most: Mapping[str, float] = {}
    of: Literal["times", "kept", "peaks"] = "times"


def ratio(seconds: Mapping[Step, Sequence[float]], step: Step, reference: Step) -> Ratio | None:
    """How many times as long as the reference; None where one of both was not measured.

    >>> a, b = Step("net", "fp"), Step("net", "qat")
    >>> ratio({a: [1.0, 2.0, 4.0], b: [3.0, 4.0, 12.0]}, b, a)
    Ratio(median=3.0, minima=3.0)
    """
    if step not in seconds or reference not in seconds:
        return None
    own, other = list(seconds[step]), list(seconds[reference])
    return Ratio(speedup(other, own), ratio_of_minima(own, other))


def plain_fp(step: Step) -> Step:
    """FP of ordinary convolutions in the same column."""
    return Step(step.model, "fp", precision=step.precision, compiled=step.compiled)


def fp32_eager(step: Step) -> Step:
    """FP of ordinary convolutions, in float32 and not compiled."""
    return Step(step.model, "fp")


def plain_qat(step: Step) -> Step:
    """Plain QAT at the same width in the same column."""
    return plain_fp(step).of(stage="qat", mode=PLAIN, quant=step.quant)


def convolutions(step: Step) -> Step:
    """The convolutions of a RepQ-BN step alone, in the same column; no compiler changes them."""
    return plain_fp(step).of(stage="convolutions", rep=step.rep, compiled=False)


def _is(mode: str) -> Callable[[Step], bool]:
    return lambda step: step.mode == mode and step.by == OURS


def _by(peer: str) -> Callable[[Step], Step]:
    return lambda step: step.of(by=peer)


RULES = [
    _Rule(lambda step: step.stage == "fp" and step.rep == NO_REP, fp32_eager, "FP plain fp32 eager"),
    _Rule(lambda step: step.stage == "fp" and step.rep != NO_REP, plain_fp, "FP plain"),
    _Rule(_is(PLAIN), plain_fp, "FP plain", {EAGER: 1.25, COMPILED: 1.05}),
    _Rule(lambda step: step.by != OURS, plain_fp, "FP plain"),
    *(_Rule(_is(PLAIN), _by(peer), name, {COMPILED: 1.0}) for peer, name in PEERS.items()),
    _Rule(
        lambda step: _is(PLAIN)(step) and step.column != EAGER,
        fp32_eager,
        "FP plain fp32 eager",
        {"bf16 compiled": 0.65},
    ),
    _Rule(lambda step: step.rep != NO_REP and step.mode not in ("", RepQBNEst.name), plain_qat, "Plain QAT"),
    _Rule(_is(RepQBNEst.name), plain_qat, "Plain QAT", {EAGER: 1.2, COMPILED: 1.15}),
    _Rule(_is(RepQBNEst.name), lambda step: step.of(mode=RepQBN.name), "RepQ-BN", {EAGER: 0.6, COMPILED: 0.6}),
    _Rule(_is(RepQBN.name), convolutions, "its convolutions alone", {EAGER: 1.25, COMPILED: 1.15}),
    _Rule(_is(PLAIN), plain_fp, "FP plain, bytes kept for backward", {EAGER: 1.3, COMPILED: 1.2}, "kept"),
    _Rule(_is(PLAIN), plain_fp, "FP plain, bytes at the peak", of="peaks"),
]


def goals(
    model: str,
    seconds: Mapping[Step, Sequence[float]],
    kept: Mapping[Step, int],
    peaks: Mapping[Step, int],
) -> list[Goal]:
    """The lines of one model for which there is something to divide, rule by rule.

    kept, peaks: bytes from the forward to the backward pass, and at the peak of a CUDA device.
    """
    measurements = {"times": seconds, "kept": _as_rounds(kept), "peaks": _as_rounds(peaks)}
    found: dict[str, tuple[dict[str, Ratio], Mapping[str, float]]] = {}
    for rule in RULES:
        measured = measurements[rule.of]
        for step in measured:
            reference = rule.reference(step)
            own = ratio(measured, step, reference) if step.model == model and rule.holds(step) else None
            if own is not None:
                width = f" {step.quant}" if step.quant else ""
                ratios, _ = found.setdefault(f"{step.label}{width} / {rule.what}", ({}, rule.at_most))
                ratios[step.column] = own
    return [Goal(name, ratios, {column: most for column, most in limits.items() if column in ratios})
            for name, (ratios, limits) in found.items()]  # fmt: skip


def _as_rounds(values: Mapping[Step, int]) -> Mapping[Step, Sequence[float]]:
    return {step: [float(value)] for step, value in values.items()}
