"""``repq cache``: FP stages and decoded images that runs share. Reads files only; imports neither Hydra nor torch."""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path

from repq_cli.cli.arguments import Parser
from repq_cli.data import image_cache
from repq_cli.errors import ConfigError, DataError
from repq_cli.files import Taken
from repq_cli.kept import Kept
from repq_cli.text import columns, file_size
from repq_cli.train.fp_cache import ROOT, FPCache, stored

HEADER_OF_IMAGES = ("key", "images", "from", "as", "size", "last used")
HEADER = ("key", "model", "rep", "data", "seed", "epochs", "trained", "size", "last used", "trained in")
DAY = 86_400.0  # seconds


def run(options: argparse.Namespace) -> int:
    """``repq cache list`` and ``repq cache prune``."""
    root, images = Path(options.root), Path(options.images)
    if not root.is_dir() and options.root != str(ROOT):
        raise DataError(f"--root {root} is no folder: name one that holds stored FP stages, such as {ROOT}.")
    if root.is_dir():
        os.listdir(root)  # where that is not allowed, it is no folder without stages
    if not images.is_dir() and options.images != str(image_cache.ROOT):
        raise DataError(
            f"--images {images} is no folder: name one that holds decoded images, such as {image_cache.ROOT}."
        )
    stages, sets = stored(root), image_cache.stored(images)
    if options.action == "list":
        print(_listing(stages, root))
        if sets:
            print(f"\n{_listing_of_images(sets, images)}")
    else:
        _refuse_unknown(options.keys, [*stages, *sets], root)
        _prune(stages, root, options.keys, options.days, options.dry_run)
        if sets:
            _prune(sets, images, options.keys, options.days, options.dry_run)
    return 0


def parser() -> argparse.ArgumentParser:
    """Its paths and flags."""
    parser = Parser(
        prog="repq cache",
        description="The FP stages that repq train keeps, so that runs with the same one train it once, and the images "
        "that it keeps decoded (data.disk_cache).",
        epilog="Nothing of it is ever needed: without it the next run trains or decodes again.",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="list | prune")
    place = Parser(add_help=False)
    place.add_argument("--root", default=str(ROOT), metavar="DIR", help="where stages are kept (default: %(default)s)")
    place.add_argument(
        "--images",
        default=str(image_cache.ROOT),
        metavar="DIR",
        help="where decoded images are kept (default: %(default)s)",
    )
    actions.add_parser("list", parents=[place], help="show what is stored")
    prune = actions.add_parser(
        "prune",
        parents=[place],
        help="remove what has not been used for long",
        description="Remove stages and images that no run has used for some days, and what processes that died have "
        "left. What is being trained or filled stays; runs that read images go on reading them.",
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
    return f"{columns(lines, len(HEADER))}\n{_counted(len(lines) - 1, FPCache)}, {file_size(total)} in {root}"


def _line(place: FPCache, about: dict[str, object]) -> tuple[str, ...]:
    words = [str(about.get(key, "")) for key in ("model", "rep", "data", "seed", "epochs")]
    times = about["time"]
    seconds = times.get("fp_seconds") if isinstance(times, dict) else None
    trained = "" if seconds is None else f"{seconds:.0f} s"
    return (place.key, *words, trained, file_size(place.size), _day(place), str(about["run"]))


def _listing_of_images(places: Sequence[image_cache.ImageCache], root: Path) -> str:
    lines: list[Sequence[str]] = [HEADER_OF_IMAGES]
    for place in places:
        about = place.about() or {"images": "", "from": "not finished", "rule": ""}
        words = [str(about[key]) for key in ("images", "from", "rule")]
        lines.append((place.key, *words, file_size(place.size), _day(place)))
    total = file_size(sum(place.size for place in places))
    return (
        f"{columns(lines, len(HEADER_OF_IMAGES))}\n{_counted(len(places), image_cache.ImageCache)}, {total} in {root}"
    )


def _day(place: Kept) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(place.last_used()))


def _counted(count: int, kind: type[Kept]) -> str:
    """How many of a kind, in words."""
    return f"{count} {kind.one if count == 1 else kind.many}"


def _refuse_unknown(keys: Sequence[str], places: Sequence[Kept], root: Path) -> None:
    unknown = [key for key in keys if key not in {place.key for place in places}]
    if unknown:
        raise ConfigError(
            f"Nothing is stored under {', '.join(unknown)} in {root} or beside it: repq cache list shows the keys."
        )


def _prune(places: Sequence[Kept], root: Path, keys: Sequence[str], days: float, dry_run: bool) -> None:
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
            print(f"{place.key} is being {place.done_to}: left alone")
            continue
        print(f"{'would remove' if dry_run else 'removed'} {place.key} ({file_size(size)})")
        freed, count = freed + size, count + 1
    kind = type(places[0]) if places else FPCache
    print(f"{_counted(count, kind)}, {file_size(freed)}{' would be' if dry_run else ''} removed from {root}")
