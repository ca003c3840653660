"""The table of commands, of which dispatch, help, completion and checks are made. It imports none of them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import ArgumentParser


@dataclass(frozen=True)
class App:
    """A Hydra app. Arguments are overrides of ``configs/COMMAND.yaml``; ``command_keys`` has the keys, typed.

    job: ``MODULE:FUNCTION`` that is given the configuration. start: where a command does more than check its arguments
    and run its app, the function ``(job, arguments) -> exit code`` for that.
    leaves_files: what it prints is about files that it leaves, so that it may do without a terminal.
    """

    summary: str
    job: str
    start: str | None = None
    leaves_files: bool = True

    def run(self, name: str, arguments: list[str]) -> int:
        """Check the arguments, run the app; the exit code."""
        if self.start is not None:
            return int(resolve_name(self.start)(self.job, arguments))
        from repq_cli.cli.command_line import CommandLine
        from repq_cli.cli.hydra_app import run_app, show
        from repq_cli.cli.overrides import Checker

        line = CommandLine.parse(arguments, name)
        checker = Checker(name, line)
        if line.only_shows:
            return show(name, checker.check_shown())
        run_app(name, self.job, checker.check(), checker.loader)
        return 0


@dataclass(frozen=True)
class FileCommand:
    """A command that reads files without Hydra and torch. Arguments are paths and flags.

    module: has ``parser()``, and ``run(options)`` that gives the exit code. leaves_files: as an App's.
    """

    summary: str
    module: str
    leaves_files: bool = False

    def parser(self) -> ArgumentParser:
        """Its paths and flags."""
        parser: ArgumentParser = resolve_name(f"{self.module}:parser")()
        return parser

    def run(self, name: str, arguments: list[str]) -> int:
        """Parse the arguments, do it; the exit code."""
        options = self.parser().parse_args([_at_home(word) for word in arguments])
        options.typed = arguments
        return int(resolve_name(f"{self.module}:run")(options))


def _at_home(word: str) -> str:
    """A path, or a flag with one, with ``~`` as a shell takes it, which it does at the beginning of words alone."""
    flag, sign, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return f"{flag}{sign}{os.path.expanduser(value)}"


COMMANDS: dict[str, App | FileCommand] = {
    "train": App(
        "pretrain, train quantization-aware, freeze to integers, check",
        "repq_cli.cli.jobs:run_job",
        start="repq_cli.cli.train:train",
    ),
    "eval": App("a finished run on any evaluation set", "repq_cli.cli.evaluate:eval_job", leaves_files=False),
    "predict": App("the classes of image files by a finished run, as CSV or JSON", "repq_cli.cli.predict:predict_job"),
    "export": App("the integer network as a file to ship, proven equal", "repq_cli.cli.export:export_job"),
    "upscale": App("enlarge image files with a super-resolution run", "repq_cli.cli.upscale:upscale_job"),
    "bench": App("what inference and training steps cost, side by side", "repq_cli.cli.bench:bench_job"),
    "diagnose": App("which layer of a finished run hurts, and what to try", "repq_cli.cli.diagnose:diagnose_job"),
    "info": App(
        "an assembled network, its parameters, and the environment", "repq_cli.cli.info:info_job", leaves_files=False
    ),
    "table": FileCommand("the papers' tables, made of the rows of runs", "repq_cli.cli.table"),
    "plot": FileCommand("figures of what a sweep found, as PNG and SVG", "repq_cli.cli.plot", leaves_files=True),
    "report": FileCommand("one HTML page of all that runs found, to send", "repq_cli.cli.report", leaves_files=True),
    "cache": FileCommand("list and prune the FP stages that runs share", "repq_cli.cli.cache"),
}
