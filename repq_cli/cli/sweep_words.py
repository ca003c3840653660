"""What a sweep says at its beginning and at its end."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from repq_cli.runs.row import deployed_metric
from repq_cli.runs.sweep import Plan, SweepFolder
from repq_cli.text import command


def opening(folder: SweepFolder, plan: Plan) -> list[str]:
    """What is about to happen: how many runs, what was done before, what is left out and why."""
    legal = plan.legal
    count, what = (len(legal), "run") if plan.trials is None else (plan.trials, "trial")
    lines = [f"{count} {what}{'s' * (count != 1)} in {folder}"]
    same = len(legal) - len({job.key for job in legal})
    done = len(folder.numbers(plan, "done"))
    if same:
        lines[0] += f", {same} of them equal to another one"
    if done:
        lines[0] += f", {done} done before"
    if plan.trials is None:
        lines += _left_out(plan)
    return lines[1:] if plan.quiet else lines


def _left_out(plan: Plan) -> Iterator[str]:
    """What cannot be run, a line for each reason."""
    for reason in dict.fromkeys(job.left_out for job in plan.jobs if job.left_out):
        numbers = [job.number for job in plan.jobs if job.left_out == reason]
        others = f" and {len(numbers) - 1} more" if len(numbers) > 1 else ""
        yield f"left out: {plan.label(numbers[0])}{others}: {reason}"


def closing(folder: SweepFolder, plan: Plan, seconds: float) -> list[str]:
    """Each reason of failures with its jobs and the commands that run them again; then the count."""
    failed = _failed(folder, plan)
    lines = [] if plan.trials is None else [*_left_out(plan), *_best(folder, plan)]
    for reason in dict.fromkeys(failed.values()):
        lines.append(f"failed: {reason}")
        for number in (number for number, error in failed.items() if error == reason):
            lines += [f"  job {number} {plan.label(number)}".rstrip(), f"    {_again(folder, plan, number)}"]
    if len(failed) > 1:
        lines.append(f"all of them: {command('train', f'resume={folder}')}")
    done = len(folder.numbers(plan, "done"))
    pruned = len(folder.numbers(plan, "pruned"))
    ends = f"{done} of {plan.total} runs done, {len(failed)} failed{f', {pruned} pruned' * (pruned > 0)}"
    count = f"{ends}, in {seconds / 60:.1f} min"
    return [*lines, f"{count}, rows in {folder}"]


def _failed(folder: SweepFolder, plan: Plan) -> dict[int, str]:
    """The errors of the jobs that failed."""
    return {number: str(folder.job(number).readable_row().get("error")) for number in folder.numbers(plan, "failed")}


def _best(folder: SweepFolder, plan: Plan) -> Iterator[str]:
    """The trial with the best deployed network."""
    values = {number: deployed_metric(folder.job(number).readable_row()) for number in folder.numbers(plan, "done")}
    if values:
        number = max(values, key=lambda number: values[number])
        yield f"best: job {number} {plan.label(number)}: {values[number]:.2f} in {folder.job(number)}"


def _again(folder: SweepFolder, plan: Plan, number: int) -> str:
    """The command that runs one job once more, in its place."""
    own = folder.job(number)
    if own.is_used:
        return command("train", f"resume={own}")
    flags = [flag for flag in plan.flags if flag not in ("-m", "--multirun")]
    return shlex.join(["repq", "train", *plan.jobs[number].overrides, f"hydra.run.dir={quoted(own.path)}", *flags])


def quoted(path: Path) -> str:
    """A path as a value of Hydra's, in quotes where it needs them."""
    if re.fullmatch(r"[\w./-]+", str(path)):
        return str(path)
    return "'" + str(path).replace("'", "\\'") + "'"
