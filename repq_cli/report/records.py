"""Runs without their folders: a file ``NAME.jsonl`` with a line for each, which tables and figures read like folders.

A line is ``{"run": name, "row": summary.json, "config": config.yaml, "env": what env.json says of the machine}``, with
``"logged": false`` where the run left no log of training.
Folders that keys name are shortened to their last part, since they lie elsewhere for whoever reads it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from repq_cli.config import affected
from repq_cli.effects import Affects
from repq_cli.errors import DataError
from repq_cli.files import parsed_json, read_regular
from repq_cli.runs.folder import LOG

SUFFIX = ".jsonl"
LARGEST_FILE = 1 << 28  # bytes
OF_MACHINE = ("cpu", "gpus", "threads", "platform", "python", "packages", "git")


class Record(NamedTuple):
    """What is known of one run; each of the three may be absent. logged: whether it has a log of training."""

    name: str
    row: dict[str, Any] | None
    config: dict[str, Any] | None
    env: dict[str, Any] | None
    logged: bool = True

    def line(self) -> str:
        """As one line of a file of records."""
        env = {key: value for key, value in (self.env or {}).items() if key in OF_MACHINE}
        config = None if self.config is None else _without_places(self.config)
        told = {"run": self.name, "row": self.row, "config": config, "env": env}
        return json.dumps(_as_json(told | ({} if self.logged else {"logged": False})), allow_nan=False)


def record_files(path: Path) -> list[Path]:
    """``path`` itself, or the files of records that a folder holds."""
    if path.is_file():
        return [path] if path.suffix == SUFFIX else []
    return sorted(file for file in path.glob(f"*{SUFFIX}") if file.name != LOG and file.is_file())


def records_in(path: Path, notes: list[str]) -> Iterator[Record]:
    """The runs of a file; a note for each line that is none. Raises DataError for a file that cannot be read."""
    try:
        lines = read_regular(path, LARGEST_FILE).decode(errors="replace").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}): name a file of runs, a line for each.") from error
    for number, line in enumerate(lines, 1):
        try:
            found = parsed_json(line.encode())
        except ValueError:
            found = {}
        if not _is_name(found.get("run")):
            notes.append(f"{path}, line {number}, is no run.")
            continue
        row, config, env = (
            part if isinstance(part, dict) else None for part in map(found.get, ("row", "config", "env"))
        )
        yield Record(f"{path.with_suffix('')}/{found['run']}", row, config, env, found.get("logged") is not False)


def _is_name(value: Any) -> bool:
    """Whether a file could be called so."""
    try:
        return isinstance(value, str) and b"\0" not in os.fsencode(value)
    except UnicodeError:
        return False


def _as_json(value: Any) -> Any:
    """What JSON can say of a value of JSON's or YAML's: dates as text, and no number where there is none."""
    if isinstance(value, dict):
        return {str(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, type(None))) else str(value)


def _without_places(tree: dict[str, Any], above: str = "") -> dict[str, Any]:
    """The configuration with the last part alone of every path that a key names."""
    return {
        key: _without_places(value, f"{above}{key}.") if isinstance(value, dict) else _shortened(f"{above}{key}", value)
        for key, value in tree.items()
    }


def _shortened(key: str, value: Any) -> Any:
    is_place = isinstance(value, str) and affected(key) is Affects.PLACE
    return PurePath(value).name if is_place else value
