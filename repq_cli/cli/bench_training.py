"""``repq bench bench=train``: what training steps cost, side by side, as tables and bench.json."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict

import torch
from tqdm import tqdm

from repq_cli import neighbours
from repq_cli.bench import load
from repq_cli.bench.goals import Goal, goals, plain_fp, plain_qat, ratio
from repq_cli.bench.memory import peak_bytes, saved_bytes
from repq_cli.bench.steps import OURS, Step
from repq_cli.bench.tables import document
from repq_cli.bench.timing import Clock, spread
from repq_cli.bench.training import Trained
from repq_cli.cli.bench_asked import Plan, choices_of, notes_on, plan_of, refuse_lists_of_one, settings_of, threads_of
from repq_cli.cli.bench_rounds import FORMAT, made, no_terminal, timed, written
from repq_cli.command_keys import BenchKeys, listed
from repq_cli.devices import use_device
from repq_cli.files import write_json
from repq_cli.report.render.markdown import markdown
from repq_cli.report.render.text import text
from repq_cli.runs.folder import BENCH
from repq_cli.runs.row import Row, now, prune
from repq_cli.train.environment import environment

WARM_UP = 2  # steps before anything is measured: they compile, allocate, and make the optimiser's state

Sizes = dict[Step, int]


def training(asked: BenchKeys, batches: list[int], rounds: int) -> None:
    """Time the training steps that are asked for; print tables, write bench.json."""
    others = neighbours.load()
    choices = choices_of(asked, batches)
    refuse_lists_of_one(asked.runtime)
    threads = threads_of(asked)
    device = use_device(asked.runtime.device)
    settings = settings_of(asked, batches[0], device)
    plans = [plan_of(name, choices, settings) for name in listed(asked.models)]
    out = made(asked.out, "train")
    if threads is not None:
        torch.set_num_threads(threads)
    found: Row = _about(asked, rounds, device) | {"batch": settings.batch, "size": settings.size}
    found |= {"rows": [], "goals": [], "notes": []}
    for plan in plans:
        _measure(plan, settings.batch, rounds, asked.clock, device, found)
        write_json(out / BENCH, prune(found))  # the next model may fail
    busy = load.hint(others, torch.get_num_threads(), neighbours.cores())
    found["notes"] = [*notes_on(plans), *([busy] if busy else [])]
    write_json(out / BENCH, prune(found))
    if asked.format == "json":
        sys.stdout.writelines([json.dumps(prune(found), indent=2, allow_nan=False), "\n"])
        return
    print({"text": text, "markdown": markdown}[asked.format](document(found)).rstrip())
    print(f"\n{written(out, 'training')}")


def _about(asked: BenchKeys, rounds: int, device: torch.device) -> Row:
    """What holds for all rows."""
    threads = torch.get_num_threads()
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else environment()["cpu"]
    return {
        "format": FORMAT,
        "bench": "train",
        "started": now(),
        "machine": f"{place}, {threads} thread{'' if threads == 1 else 's'}, torch {torch.__version__}",
        "threads": threads,
        "device": device.type,
        "rounds": rounds,
        "clock": asked.clock,
        "width": asked.width,
        "classes": asked.classes,
    }


def _measure(plan: Plan, batch: int, rounds: int, clock: Clock, device: torch.device, found: Row) -> None:
    """Add the rows and goals of one model to ``found``."""
    finish = _finish(device)
    calls: dict[Step, Callable[[], object]] = {}
    kept, peaks = Sizes(), Sizes()
    with tqdm(plan.steps, desc=f"{plan.model}: warming up", unit="step", leave=False, disable=no_terminal()) as bar:
        for step in bar:
            bar.set_postfix_str(f"{step.label}, {step.column}")
            if bar.disable:  # a line for those who look later: compiling takes minutes
                print(f"{plan.model}: {step.label}, {step.column}: warming up", file=sys.stderr, flush=True)
            trained = _warm(step, plan)
            if trained is None:
                continue
            finish()
            if step.stage != "convolutions":
                kept[step] = saved_bytes(trained.run, trained.net)
                peak = peak_bytes(trained.run, device)
                peaks |= {} if peak is None else {step: peak}
            calls[step] = trained.run
    seconds = timed(calls, rounds, plan.model, clock, finish)
    found["rows"] += [_row(step, batch, seconds, kept.get(step), peaks.get(step)) for step in seconds]
    found["goals"] += [_goal(plan.model, goal) for goal in goals(plan.model, seconds, kept, peaks)]


def _warm(step: Step, plan: Plan) -> Trained | None:
    """A step that has run some times; None, and a note, where a peer's fails, or the compiler on any."""
    try:
        trained = Trained(step, plan.subject)
        for _ in range(WARM_UP):
            trained.run()
    except Exception as error:
        if step.by == OURS and not step.compiled:
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        plan.notes.append(f"{step.label} {step.quant}, {step.column}, fails and is left out: {reason}")
        return None
    return trained


def _finish(device: torch.device) -> Callable[[], None]:
    """Waits for what a device has still to do."""
    return (lambda: torch.accelerator.synchronize(device)) if device.type != "cpu" else lambda: None


def _row(step: Step, batch: int, seconds: dict[Step, list[float]], kept: int | None, peak: int | None) -> Row:
    """What bench.json says of one kind of step."""
    own = seconds[step]
    middle, low, high = (value * 1e3 for value in spread(own))
    ratios = {"times_plain_fp": ratio(seconds, step, plain_fp(step))}
    if step.stage == "qat":
        ratios["times_plain_qat"] = ratio(seconds, step, plain_qat(step))
    return {
        **asdict(step),
        "label": step.label,
        "column": step.column,
        "median_ms": middle,
        "low_ms": low,
        "high_ms": high,
        "shortest_ms": min(own) * 1e3,
        "ms": [value * 1e3 for value in own],
        "images_per_second": batch * 1e3 / middle,
        **{key: None if value is None else value._asdict() for key, value in ratios.items()},
        "saved_bytes": kept,
        "peak_bytes": peak,
    }


def _goal(model: str, goal: Goal) -> Row:
    ratios = {column: value._asdict() for column, value in goal.ratios.items()}
    return {"model": model, "name": goal.name, "ratios": ratios, "at_most": dict(goal.at_most)}
