"""Every run in a line, and what to do about those that did not finish."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from repq_cli.modes.catalogue import mode_named
from repq_cli.report.page.grid import Entry, Grid, Heading, spans
from repq_cli.report.runs import Run, bits_label
from repq_cli.runs.quality import UNITS, number
from repq_cli.runs.sweep import SweepFolder

AGREEMENTS = ("checks.freeze_top1_agreement", "checks.freeze_pixel_agreement")
CHECKS = (
    "Merged − branches: the largest difference between the outputs of the FP net with its branches and merged.",
    "Deployed − trained: the largest difference between the outputs of the deployed integers and of the trained net; "
    "0 is exact.",
    "Equal answers: images, or pixels of pictures, for which both give the same.",
)
RunColumn = tuple[str, Heading, Callable[[Run], Entry]]  # its group, its name, and what it says of a run
IN_CAPTION = {"Data", "of"}  # columns, where all runs have the same
NO_COMMAND = "its configuration was never written: start it again by the command that started it"


def common_folder(runs: Sequence[Run]) -> str:
    """The folder above all runs, empty where there is none but the current one or the root."""
    parents = [os.path.dirname(run.folder) for run in runs]
    if len({os.path.isabs(parent) for parent in parents}) != 1:
        return ""
    return os.path.commonpath(parents).rstrip("/")


def all_runs(runs: Sequence[Run]) -> Grid:
    """A line for each run: what it was, its metric by every net, and its checks."""
    above = common_folder(runs)
    columns = [column for column in _columns(above) if _tells(column, runs)]
    groups = spans(group for group, *_ in columns)
    said = [f"{len(runs)} runs" if len(runs) > 1 else "The run", f"below {above}" if above else ""]
    for same in ({run.data or "" for run in runs}, {_metric(run) for run in runs}):
        said += same if len(same) == 1 else []
    return Grid(
        ", ".join(part for part in said if part),
        tuple(heading for _, heading, _ in columns),
        tuple(tuple(entry(run) for _, _, entry in columns) for run in sorted(runs, key=_natural)),
        groups,
        CHECKS if any(group == "Checks" for group, _ in groups) else (),
    )


def _folder(run: Run, above: str) -> Entry:
    return Entry(os.path.relpath(run.folder, above) if above else run.folder)


def _natural(run: Run) -> list[tuple[int, str]]:
    """Orders numbers in folders' names as numbers: job 2 before job 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", run.folder)]


def _tells(column: RunColumn, runs: Sequence[Run]) -> bool:
    """Whether anything stands in a column; of what the caption can say, whether it differs."""
    texts = {column[2](run).text for run in runs}
    return len(texts) > 1 if column[1].text in IN_CAPTION else texts != {""}


def _columns(above: str) -> list[RunColumn]:
    """All that there may be."""

    def metric(key: str) -> Callable[[Run], Entry]:
        return lambda run: _entry(run, key, lambda value: number(value, run.metric.name if run.metric else ""))

    return [
        ("", Heading("Folder"), lambda run: _folder(run, above)),
        ("", Heading("Model"), lambda run: Entry(run.model)),
        ("", Heading("Rep"), lambda run: Entry(run.rep)),
        ("", Heading("Mode"), lambda run: Entry(mode_named(run.mode).title)),
        ("", Heading("Bits"), lambda run: Entry(bits_label(run.bits))),
        ("", Heading("Seed", True), lambda run: Entry("" if run.seed is None else str(run.seed), run.seed)),
        ("", Heading("Data"), lambda run: Entry(run.data or "")),
        ("", Heading("Status"), lambda run: Entry(run.status, mark=run.status)),
        ("Metric", Heading("of"), lambda run: Entry(_metric(run))),
        ("Metric", Heading("FP", True), metric("metric.fp")),
        ("Metric", Heading("QAT", True), metric("metric.qat")),
        ("Metric", Heading("Deployed", True), metric("metric.deployed")),
        (
            "Checks",
            Heading("Merged −\xa0branches", True),
            lambda run: _entry(run, "checks.merge_max_abs", "{:.1e}".format),
        ),
        (
            "Checks",
            Heading("Deployed −\xa0trained", True),
            lambda run: _entry(run, "checks.freeze_max_abs", "{:g}".format),
        ),
        ("Checks", Heading("Equal answers", True), _agreement),
    ]


def _entry(run: Run, key: str, form: Callable[[float], str]) -> Entry:
    value = run.number(key)
    return Entry("") if value is None else Entry(form(value), value)


def _agreement(run: Run) -> Entry:
    key = next((key for key in AGREEMENTS if key in run.numbers), AGREEMENTS[0])
    return _entry(run, key, "{:g} %".format)


def _metric(run: Run) -> str:
    if run.metric is None:
        return ""
    name, split, _ = run.metric
    return f"{name} ({UNITS[name]}) on {split}" if UNITS.get(name) else f"{name} on {split}"


def not_finished(runs: Sequence[Run]) -> Grid | None:
    """The runs that failed, were stopped or still run, why, and the command that goes on with each."""
    above = common_folder(runs)
    lines = [
        (
            _folder(run, above),
            Entry(run.what),
            Entry(run.status, mark=run.status),
            Entry(run.error, mark="error"),
            Entry(again(run) or NO_COMMAND, mark="code" if again(run) else ""),
        )
        for run in sorted(runs, key=_natural)
        if run.status != "done"
    ]
    if not lines:
        return None
    names = map(Heading, ("Folder", "Run", "Status", "Error", "To run it again"))
    caption = f"{len(lines)} run{'s' * (len(lines) != 1)} without a result" + (f", below {above}" if above else "")
    notes = ("Commands are for the folder in which this page was made. An unfinished run may still be at work.",)
    return Grid(caption, tuple(names), tuple(lines), notes=notes)


def again(run: Run) -> str:
    """The command that runs it again; of a job that could not begin, the one that goes on with its sweep."""
    if run.configured:
        return shlex.join(["repq", "train", f"resume={run.folder}"])
    sweep = SweepFolder(Path(run.folder).parent)
    return shlex.join(["repq", "train", f"resume={sweep}"]) if sweep.is_used else ""
