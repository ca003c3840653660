"""What the commands that only read files have in common: names of tables and figures, and where runs are."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from repq_cli.errors import ConfigError, DataError
from repq_cli.runs.outputs import OUTPUTS
from repq_cli.text import fitted
from repq_cli.typecheck import nearest

PATHS = "a run, a sweep, a folder of runs, a summary.json, or a .jsonl of runs (default: outputs)"


class Parser(argparse.ArgumentParser):
    """Whose help and complaints fit a terminal."""

    def _print_message(self, message: str, file: Any = None) -> None:
        super()._print_message(fitted(message, file or sys.stderr), file)

    def error(self, message: str) -> NoReturn:
        """Its complaints as sentences of ours."""
        flags = [word for word in re.findall(r"--[\w-]+", message) if word not in self._option_string_actions]
        near = nearest(flags[0], self._option_string_actions) if flags else None
        hint = f"did you mean {near}?" if near else f"{self.prog} --help shows what there is."
        raise ConfigError(f"{self.prog}: {re.sub(r'^argument ', '', message)}; {hint}")


def parser_of_paths(command: str, description: str, epilog: str, paths: str = PATHS) -> argparse.ArgumentParser:
    """A parser of paths, to which flags are yet to be added."""
    parser = Parser(
        f"repq {command}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("paths", nargs="*", metavar="PATH", help=paths)
    return parser


def known_names(given: Iterable[str], kind: str, names: Iterable[str]) -> list[str]:
    """The ``names`` of tables or figures in what was ``given``, comma-separated or repeated; ConfigError for others."""
    legal = list(names)
    found = [name for words in given for name in words.split(",")]
    for name in found:
        if name not in legal:
            near = nearest(name, legal)
            hint = f"did you mean '{near}'?" if near else f"the {kind}s are {', '.join(legal)}."
            raise ConfigError(f"There is no {kind} '{name}'; {hint}")
    return found


def outputs(command: str) -> Path:
    """The folder that runs are in by default; DataError where there is none."""
    if not OUTPUTS.is_dir():
        raise DataError(
            f"There is no folder {OUTPUTS}/ here: "
            f"run repq {command} where you ran repq train, or name a folder of runs."
        )
    return OUTPUTS


def with_notes(sentence: str, notes: Sequence[str]) -> str:
    """A sentence and, below it, what explains it."""
    return "\n".join([sentence, *(f"  {note}" for note in notes)])
