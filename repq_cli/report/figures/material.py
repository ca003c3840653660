"""What figures are drawn from, and the choice of runs where there are too many to draw all."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from repq_cli.modes.catalogue import MODES, mode_named
from repq_cli.report.figures.drawing import Drawing
from repq_cli.report.figures.reading import Bench, Log, read_log
from repq_cli.report.figures.step_reading import StepBench
from repq_cli.report.figures.style import plain
from repq_cli.report.lines import Line
from repq_cli.report.runs import Run, bits_label
from repq_cli.report.sections import Section
from repq_cli.runs.folder import RunFolder

FEW = 3  # runs of which each gets a figure of its own
MOST = 6  # figures of single runs
MOST_TEXT = 1000  # characters of a name

Found = tuple[list[Drawing], list[str]]  # drawings, and notes on what they leave out


@dataclass
class Material:
    """Sections of runs, measurements of inference and of training steps; logs are read when they are asked for."""

    sections: Sequence[Section]
    benches: Sequence[Bench]
    step_benches: Sequence[StepBench] = ()
    _logs: dict[tuple[str, str], Log] = field(default_factory=dict)

    def log(self, run: Run, metric: str) -> Log:
        """The run's log."""
        if (run.folder, metric) not in self._logs:
            self._logs[run.folder, metric] = read_log(RunFolder(run.folder).log_file, metric)
        return self._logs[run.folder, metric]

    @property
    def runs(self) -> list[Run]:
        """All runs, each once: one that measured nothing stands in several sections."""
        return list({run.folder: run for section in self.sections for run in section.runs}.values())

    def damage(self) -> list[str]:
        """A note on logs that could be read only in part."""
        damaged = sorted({folder for (folder, _), log in self._logs.items() if log.damaged})
        lines = sum(log.damaged for log in self._logs.values())
        if not damaged:
            return []
        more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        return [f"Lines of metrics.jsonl that hold no usable numbers are left out: {lines}, in {damaged[0]}{more}."]


def telling_runs(runs: Sequence[Run], has: Callable[[Run], bool], figure: str) -> tuple[list[Run], list[str]]:
    """The runs to draw one by one: all of a few, else one for each model and width, and a note on the others."""
    able = [run for run in runs if not run.linked and has(run)]
    if len(able) <= FEW:
        return able, []
    ordered = sorted(able, key=_order)
    chosen = list({(run.model, run.bits): run for run in reversed(ordered)}.values())[::-1]
    chosen = sorted(chosen, key=lambda run: (run.model, [-width for width in run.bits]))
    note = (
        f"{figure} is drawn for {min(len(chosen), MOST)} of {len(able)} runs, one for each model and width: "
        f"repq plot RUN --figure {figure} draws any other."
    )
    return chosen[:MOST], [note]


def _order(run: Run) -> tuple[object, ...]:
    mode = mode_named(run.mode)  # whose branches are at work in QAT tell most, later ones more
    less = run.mode not in MODES, not mode.uses_branches, mode.merges_first, not mode.trains, bool(mode.known_loss)
    return run.status != "done", less, -mode.order, run.rep == "none", run.seed is None, run.seed, run.folder


def run_title(run: Run) -> str:
    """What ran, in words."""
    seed = "" if run.seed is None else f", seed {run.seed}"
    return f"{run.model}, {run.rep}, {mode_named(run.mode).title}, {bits_label(run.bits)}{seed}"


def line_titles(lines: Sequence[Line], limit: int) -> list[str]:
    """Model and block, and below them what tells the line from others of theirs; each cut to ``limit``."""
    names = told_apart([f"{line.model} {line.rep}" for line in lines], limit)
    variants = told_apart([line.variant for line in lines], limit)
    return ["\n".join(filter(None, words)) for words in zip(names, variants, strict=True)]


def told_apart(texts: Sequence[str], limit: int) -> list[str]:
    """``plain`` texts of at most ``limit`` characters: where one is longer, what all begin or end with goes first.

    >>> told_apart(["net, fp.epochs=8, fp.lr=1", "net, fp.epochs=80, fp.lr=1"], 16), told_apart(["short", ""], 16)
    (['…epochs=8…', '…epochs=80…'], ['short', ''])
    """
    full = [plain(text, MOST_TEXT) for text in texts]
    several = [text for text in dict.fromkeys(full) if text]
    if max(map(len, full), default=0) <= limit or len(several) < 2:
        return [plain(text, limit) for text in full]
    start = _alike(several, r"[ ,.]+")
    end = _alike([text[start:][::-1] for text in several], r"[ ,]+")
    marks = ("…" if start else "", "…" if end else "")
    return [text and plain(f"{marks[0]}{text[start : len(text) - end]}{marks[1]}", limit) for text in full]


def _alike(texts: Sequence[str], between: str) -> int:
    """How many signs all begin with, up to where a word ends."""
    shared = sum(1 for _ in itertools.takewhile(lambda signs: len(set(signs)) == 1, zip(*texts, strict=False)))
    return max((match.end() for match in re.finditer(between, texts[0][:shared])), default=0)


def metric_label(section: Section) -> str:
    """The name of an axis."""
    unit = f" ({section.unit})" if section.unit else ""
    return f"{section.metric.name} on {section.metric.split}{unit}"
