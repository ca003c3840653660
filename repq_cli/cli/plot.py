"""``repq plot``: an argparse command that only reads files and draws them, without Hydra and torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from repq_cli.cli.arguments import PATHS, known_names, outputs, parser_of_paths, with_notes
from repq_cli.cli.figures import FORMATS, save
from repq_cli.errors import DataError
from repq_cli.extras import extra
from repq_cli.files import make_folder
from repq_cli.report.figures.catalogue import FIGURES, drawings
from repq_cli.runs.outputs import OUTPUTS, reserve
from repq_cli.text import columns

DESCRIPTION = """\
Draw what runs have found: their rows (summary.json), logs (metrics.jsonl) and measurements (bench.json).
Points are means over seeds. Nothing is trained, and nothing is changed."""

EPILOG = """\
figures, each drawn where there is something to show:
{figures}

examples:
  repq plot                                         all runs below outputs/
  repq plot outputs/sweep/20260101-120000-train     one sweep
  repq plot outputs/train/RUN --figure steps,weights
  repq plot --figure pareto --format svg --out paper/figures

exit codes: 0 done, 2 usage, 3 nothing to draw, or files that cannot be read or written"""


def run(options: argparse.Namespace) -> int:
    """``repq plot``; the exit code."""
    names = known_names(options.figure, "figure", FIGURES)
    formats = known_names([options.format], "format", FORMATS)
    paths = [Path(path) for path in options.paths] or [outputs("plot")]
    with extra("plot"):
        import matplotlib  # noqa: F401

        drawn, notes = drawings(paths, names)
        if not drawn:
            raise DataError(with_notes("There is nothing to draw: train some runs, or name a folder of them.", notes))
        folder = _folder(options.out)
        for drawing in drawn:
            print(*save(drawing, folder, formats), sep="\n")
    _print_notes(notes)
    return 0


def _folder(named: str | None) -> Path:
    if named is None:
        return reserve(OUTPUTS / "plots", "", "--out DIR")
    return make_folder(Path(named), "name another with --out")


def _print_notes(notes: Sequence[str]) -> None:
    for note in notes:
        print(f"- {note}".encode(errors="replace").decode())  # names may hold any code point


def parser() -> argparse.ArgumentParser:
    """Its paths and flags."""
    figures = columns([(f"  {name}", kind.summary) for name, kind in FIGURES.items()], 2)
    paths = PATHS.replace(", or a", ", a bench.json or a")
    parser = parser_of_paths("plot", DESCRIPTION, EPILOG.format(figures=figures), paths)
    parser.add_argument(
        "--figure", action="append", default=[], metavar="NAME", help="only this figure; may be repeated"
    )
    parser.add_argument("--format", default="png,svg", metavar="FORMATS", help="of the files (default: png,svg)")
    parser.add_argument("--out", metavar="DIR", help="folder for the files (default: outputs/plots/TIME)")
    return parser
