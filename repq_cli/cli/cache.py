"""``repq cache``: the FP stages that runs share. Reads files only; imports neither Hydra nor torch."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path

from repq_cli.errors import ConfigError, DataError
from repq_cli.files import Taken
from repq_cli.text import columns, file_size
from repq_cli.train.fp_cache import ROOT, FPCache, stored

HEADER = ("key", "model", "rep", "data", "seed", "epochs", "trained", "size", "last used", "trained in")
DAY = 86_400.0  # seconds


def run(options: argparse.Namespace) -> int:
    """``repq cache list`` and ``repq cache prune``."""
    root = Path(options.root)
    if not root.is_dir() and options.root != str(ROOT):
        raise DataError(f"--root {root} is no folder: name one that holds stored FP stages, such as {ROOT}.")
    if options.action == "list":
        print(_listing(stored(root), root))
    else:
        _prune(root, options.keys, options.days, options.dry_run)
    return 0


def parser() -> argparse.ArgumentParser:
    """Its paths and flags."""
    parser = argparse.ArgumentParser(
        prog="repq cache",
        description="The FP stages that repq train keeps, so that runs with the same one train it once.",
        epilog="A stage is never needed: without it the next run trains it again.",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="list | prune")
    place = argparse.ArgumentParser(add_help=False)
    place.add_argument("--root", default=str(ROOT), metavar="DIR", help="where they are kept (default: %(default)s)")
    actions.add_parser("list", parents=[place], help="show what is stored")
    prune = actions.add_parser(
        "prune",
        parents=[place],
        help="remove what has not been used for long",
        description="Remove stages that no run has used for some days, and what processes that died have left. "
        "Stages that are being trained stay.",
    )
    prune.add_argument("keys", nargs="*", metavar="KEY", help="remove these, however old, and no others")
    prune.add_argument("--days", type=_days, default=30, metavar="N", help="0 removes all (default: %(default)s)")
    prune.add_argument("--dry-run", action="store_true", help="say what would be removed, and leave it")
    return parser


def _days(text: str) -> float:
    days = float(text)
    if not 0 <= days < math.inf:
        raise ValueError
    return days


def _listing(places: Sequence[FPCache], root: Path) -> str:
    lines = [HEADER, *(_line(place, about) for place in places if (about := place.about()) is not None)]
    if len(lines) == 1:
        return f"No FP stage is stored in {root}."
    total = sum(place.size for place in places)
    return (
        f"{columns(lines, len(HEADER))}\n{len(lines) - 1} stage{'s' * (len(lines) > 2)}, {file_size(total)} in {root}"
    )


def _line(place: FPCache, about: dict[str, object]) -> tuple[str, ...]:
    words = [str(about.get(key, "")) for key in ("model", "rep", "data", "seed", "epochs")]
    times = about["time"]
    seconds = times.get("fp_seconds") if isinstance(times, dict) else None
    trained = "" if seconds is None else f"{seconds:.0f} s"
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(place.last_used()))
    return (place.key, *words, trained, file_size(place.size), used, str(about["run"]))


def _prune(root: Path, keys: Sequence[str], days: float, dry_run: bool) -> None:
    places = stored(root)
    unknown = [key for key in keys if key not in {place.key for place in places}]
    if unknown:
        raise ConfigError(f"No FP stage {', '.join(unknown)} is stored in {root}: repq cache list shows the keys.")
    freed = count = 0
    for place in places:
        old = place.about() is None or time.time() - place.last_used() >= days * DAY
        if place.key not in keys if keys else not old:
            continue
        try:
            with place.held():
                size = place.size
                if not dry_run:
                    place.drop()
        except Taken:
            print(f"{place.key} is being trained: left alone")
            continue
        print(f"{'would remove' if dry_run else 'removed'} {place.key} ({file_size(size)})")
        freed, count = freed + size, count + 1
    print(f"{count} stage{'s' * (count != 1)}, {file_size(freed)}{' would be' if dry_run else ''} removed from {root}")
