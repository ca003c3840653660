"""``repq report``: an argparse command that only reads files, without Hydra and torch."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from repq_cli import __version__
from repq_cli.cli.arguments import outputs, parser_of_paths, with_notes
from repq_cli.errors import DataError
from repq_cli.files import make_folder, write_atomically
from repq_cli.report.page.page import Making, Picture, page_of
from repq_cli.report.page.render import render
from repq_cli.report.reading import find_runs
from repq_cli.runs.outputs import OUTPUTS, reserve
from repq_cli.runs.row import now
from repq_cli.text import file_size, moment

REPORTS = OUTPUTS / "reports"

DESCRIPTION = """\
Write one HTML page of everything that runs found, to be sent to somebody: the tables of repq table,
the figures of repq plot, every run, what failed and how to run it again, how all were set up, and on
which machine. The page needs no other file and fetches nothing; a click on a heading sorts its table."""

EPILOG = """\
examples:
  repq report                                         all runs below outputs/
  repq report outputs/sweep/20260101-120000-train --out sweep.html
  repq report outputs/train/RUN --title "RepVGG-A0 at 4 bit"

exit codes: 0 done, 2 usage, 3 no runs, or files that cannot be read or written"""


def run(options: argparse.Namespace) -> int:
    """``repq report``; the exit code."""
    paths = [Path(path) for path in options.paths] or [outputs("report")]
    runs, notes = find_runs(paths)
    if not runs:
        raise DataError(
            with_notes("There are no runs to report on: train some, or name a folder that holds some.", notes)
        )
    if options.out is not None:
        make_folder(Path(options.out).parent)  # before the work
    pictures, picture_notes = _pictures(paths)
    making = Making(shlex.join(["repq", "report", *options.typed]), __version__, moment(now()))
    page = page_of(runs, notes, pictures, picture_notes, options.title, making)
    content = render(page).encode()
    out = Path(options.out) if options.out is not None else _free_name()
    try:
        write_atomically(out, content)
    except DataError:
        if options.out is None:
            out.unlink(missing_ok=True)  # which reserved the name
        raise
    figures = f"{len(pictures)} figure{'s' * (len(pictures) != 1)}"
    _say(f"{out} ({file_size(len(content))}): {len(runs)} run{'s' * (len(runs) != 1)}, {figures}")
    for note in page.picture_notes:
        _say(note)
    return 0


def _say(text: str) -> None:
    print(text.encode(errors="replace").decode())  # folders may have names that no encoding has


def parser() -> argparse.ArgumentParser:
    """Its paths and flags."""
    parser = parser_of_paths("report", DESCRIPTION, EPILOG)
    parser.add_argument("--out", metavar="FILE", help=f"the page (default: {REPORTS}/TIME.html)")
    parser.add_argument("--title", metavar="TEXT", help="its title (default: what the runs are of)")
    return parser


def _pictures(paths: Sequence[Path]) -> tuple[list[Picture], list[str]]:
    """The figures of ``repq plot``, and why some are not there; without matplotlib, none."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:  # the page may be sent to others, whom no path of this machine tells anything
        return [], ["There are no figures. This needs matplotlib: pip install 'repq[plot]'."]
    from repq_cli.report.figures.catalogue import drawings

    found, notes = drawings(paths)
    return [Picture(drawing.title, drawing.caption, drawing.svg()) for drawing in found], notes


def _free_name() -> Path:
    make_folder(REPORTS, "name a file with --out FILE")
    return reserve(REPORTS, "", "--out FILE", ".html", lambda page: page.touch(exist_ok=False))
