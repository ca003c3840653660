"""``repq table``: an argparse command that only reads files, without Hydra and torch."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from repq_cli.cli.arguments import known_names, outputs, parser_of_paths, with_notes
from repq_cli.errors import DataError
from repq_cli.files import write_atomically
from repq_cli.report.document import TABLES, document
from repq_cli.report.reading import find_records, find_runs
from repq_cli.report.render.data import as_csv, as_json
from repq_cli.report.render.latex import latex
from repq_cli.report.render.markdown import markdown
from repq_cli.text import columns

RECORDS = "jsonl"  # no tables: the runs themselves, as a file that can be read in place of their folders
FORMATS = {"markdown": markdown, "csv": as_csv, "latex": latex, "json": as_json}
ENDINGS = {".csv": "csv", ".tex": "latex", ".json": "json", ".jsonl": RECORDS}

DESCRIPTION = """\
Print the papers' tables from the rows (summary.json) of runs. Cells are means over seeds; runs that
differ in anything else stand in lines of their own. Nothing is trained, and nothing is changed."""

EPILOG = """\
tables, each printed where there is something to show:
{tables}

examples:
  repq table                                        all runs below outputs/
  repq table outputs/sweep/20260101-120000-train    one sweep
  repq table --table classification --format latex --out table.tex
  repq table outputs/sweep/20260101-120000-train --format jsonl --out study.jsonl
  repq table study.jsonl                            the same tables without the folders
  repq table --published                            what papers report, without any run

exit codes: 0 done, 2 usage, 3 no runs, or files that cannot be read or written"""


def run(options: argparse.Namespace) -> int:
    """``repq table``; the exit code."""
    names = known_names(options.table, "table", TABLES)
    paths = [Path(path) for path in options.paths]
    if not paths and not (options.published and not names):
        paths = [outputs("table")]
    options.format = options.format or _format_of(options.out)
    if options.format == RECORDS:
        return _print(options, "".join(f"{record.line()}\n" for record in find_records(paths)[0]))
    runs, notes = find_runs(paths)
    if not runs and not options.published:
        raise DataError(with_notes("There are no runs to tabulate: train some, or name a folder of runs.", notes))
    content = document(runs, notes, names, options.published)
    if not content.chapters:
        raise DataError(with_notes("The runs found have nothing to show in these tables.", content.notes))
    text = FORMATS[options.format](content).encode(errors="replace").decode()  # names may hold any code point
    if options.format == "csv" and content.all_notes:
        print("\n".join(content.all_notes), file=sys.stderr)
    return _print(options, text)


def _format_of(out: str | None) -> str:
    """By a file's ending, where it is one of them."""
    return ENDINGS.get(Path(out or "").suffix, "markdown")


def _print(options: argparse.Namespace, text: str) -> int:
    if options.out is None:
        sys.stdout.writelines([text]) if options.format != "markdown" else print(text, end="")
    else:
        write_atomically(Path(options.out), text.encode())
    return 0


def parser() -> argparse.ArgumentParser:
    """Its paths and flags."""
    tables = columns([(f"  {name}", kind.summary) for name, kind in TABLES.items()], 2)
    parser = parser_of_paths("table", DESCRIPTION, EPILOG.format(tables=tables))
    parser.add_argument("--table", action="append", default=[], metavar="NAME", help="only this table; may be repeated")
    parser.add_argument(
        "--format", choices=[*FORMATS, RECORDS], help="how to print (default: by the ending of --out, else markdown)"
    )
    parser.add_argument("--out", metavar="FILE", help="write to a file, in place of what it held, instead of printing")
    parser.add_argument("--published", action="store_true", help="also all published figures, with their sources")
    return parser
