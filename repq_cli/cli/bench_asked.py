"""What ``repq bench bench=train`` is asked for, checked before anything is measured or written."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from repq_cli.bench.steps import NO_REP, OURS, PEERS, PLAIN, Choices, Peer, Precision, Step
from repq_cli.bench.subjects import STACK, Model, Settings, refuse_what_cannot_be_built
from repq_cli.bench.training import Subject
from repq_cli.command_keys import BenchKeys, listed
from repq_cli.errors import ConfigError, DataError
from repq_cli.library.networks import names
from repq_cli.modes.catalogue import MODES
from repq_cli.modes.catalogue.merged import PTQ
from repq_cli.problems import Problem, error_of
from repq_cli.quant.options import QuantOptions
from repq_cli.train.compiled import require_compiler
from repq_cli.train.options import RuntimeOptions
from repq_cli.typecheck import nearest

SIZE = 32  # of images, by default
ALWAYS = {NO_REP: "is Plain, which is always timed", PLAIN: "is always timed", PTQ.name: "trains nothing"}
OF_THE_BENCHMARK = {"precision": "precisions=[…]", "compile": "compiled=[…]"}  # runtime keys that are lists here


@dataclass(frozen=True)
class Plan:
    """The steps of one model, what they train, and notes on what was left out."""

    model: str
    subject: Subject
    steps: list[Step]
    notes: list[str]


def choices_of(asked: BenchKeys, batches: list[int]) -> Choices:
    """What is to be compared. Raises ConfigError with every problem, DataError for a peer that is not installed."""
    legal = {
        "models": [STACK, *names("model")],
        "reps": [name for name in names("rep") if name != NO_REP],
        "modes": [name for name, mode in MODES.items() if mode.trains and name != PLAIN],
        "quants": names("quant"),
    }
    problems = [
        Problem(key, value, _not_legal(value, options))
        for key, options in legal.items()
        for value in listed(getattr(asked, key))
        if value not in options
    ]
    empty = [key for key in ("models", "quants", "precisions", "compiled") if getattr(asked, key) == []]
    problems += [Problem(key, "[]", "leaves nothing to time; name at least one") for key in empty]
    if len(batches) != 1:
        problems.append(Problem("batch", batches, "has to be one number of images for bench=train"))
    if problems:
        raise error_of(problems)
    against: list[Peer] = listed(asked.against)
    if "brevitas" in against:
        _require_brevitas()
    keys = ("reps", "modes", "quants", "precisions", "compiled", "against")
    return Choices(**{key: list(dict.fromkeys(listed(getattr(asked, key)))) for key in keys})


def _not_legal(value: str, options: list[str]) -> str:
    if value in ALWAYS:
        return f"{ALWAYS[value]}; legal here: {', '.join(options)}"
    near = nearest(value, options)
    return f"must be one of {', '.join(options)}" + (f"; did you mean '{near}'?" if near else "")


def _require_brevitas() -> None:
    try:
        importlib.import_module("repq_cli.bench.brevitas_parts")
    except ImportError as error:
        raise DataError(
            f"against=brevitas times Brevitas' layers, which cannot be imported ({error}): pip install brevitas, or "
            f"leave it out of against."
        ) from error


def settings_of(asked: BenchKeys, batch: int, device: torch.device) -> Settings:
    """What models train on, and how. Raises ConfigError for what the device, or the clock on it, cannot do."""
    if asked.clock == "cpu" and device.type != "cpu":
        raise ConfigError(f"clock=cpu counts the processor's time, and the device is {device}: use clock=wall.")
    settings = Settings(batch, asked.size or SIZE, asked.classes, asked.width, device, asked.runtime)
    precisions: list[Precision] = listed(asked.precisions)
    for precision in precisions:
        settings.arithmetic(precision)
    if True in listed(asked.compiled):
        _require_compiler(device)
    return settings


def _require_compiler(device: torch.device) -> None:
    """DataError where nothing can be compiled, with the key that says so here."""
    try:
        require_compiler(device)
    except DataError as error:
        raise DataError(str(error).replace("runtime.compile=", "compiled=")) from error


def threads_of(asked: BenchKeys) -> int | None:
    """``threads`` or ``runtime.threads``, which mean the same; None: as many as torch likes."""
    threads, of_runtime = asked.threads, asked.runtime.threads
    if None not in (threads, of_runtime) and threads != of_runtime:
        raise ConfigError(f"threads={threads} is not runtime.threads={of_runtime}: set one of them.")
    return threads or of_runtime


def refuse_lists_of_one(runtime: RuntimeOptions) -> None:
    """ConfigError for runtime keys of which the benchmark compares several values."""
    defaults = RuntimeOptions()
    for key, instead in OF_THE_BENCHMARK.items():
        if getattr(runtime, key, None) != getattr(defaults, key, None):
            raise ConfigError(f"runtime.{key}={getattr(runtime, key)} is one of several here: use {instead}.")


def plan_of(name: str, asked: Choices, settings: Settings) -> Plan:
    """The plan for one model. Raises ConfigError for what cannot be built or has no counterpart in a peer."""
    model = Model.named(name, settings.width, settings.classes)
    subject = model.subject(asked.reps, settings)
    quants = {quant: model.quant(quant) for quant in asked.quants}
    refuse_what_cannot_be_built(subject, list(quants.values()))
    for quant, options in quants.items():
        if asked.against and not _is_lsq(options):
            raise ConfigError(
                f"quants={quant} is not LSQ at 2 to 8 bits, which is what against={','.join(asked.against)} has: leave "
                f"out one of them."
            )
    notes: list[str] = []

    def fits(rep: str, mode: str, quant: str) -> bool:
        batch_norm, rule = model.rep(rep).batch_norm, MODES[mode]
        why = rule.misfit_of_block(rep, batch_norm) or rule.misfit_of_quantizer(quants[quant])
        if why is not None:
            notes.append(f"{name}: mode {mode} with rep {rep} and quant {quant} is left out: it {why}.")
        return why is None

    steps = asked.steps(name, fits)
    return Plan(name, subject, steps, list(dict.fromkeys(notes)))


def _is_lsq(quant: QuantOptions) -> bool:
    return quant.weight_method == quant.act_method == "lsq" and min(quant.weight_bits, quant.act_bits) > 1


def notes_on(plans: list[Plan]) -> Iterator[str]:
    """What is to be said of figures, beside what was left out."""
    for plan in plans:
        yield from plan.notes
    peers = {step.by for plan in plans for step in plan.steps} - {OURS}
    if "lsq" in peers:
        yield (
            f"{PEERS['lsq']}: LSQ's formula in plain operations that autograd differentiates, which is what "
            f"the popular lsq-net does, at our widths and steps; it is not that project's code."
        )
    if "brevitas" in peers:
        yield "Brevitas: its layers at our widths, scales of weights by magnitude, of activations learned."
