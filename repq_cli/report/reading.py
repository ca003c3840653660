"""Runs found below paths and read without trust: nothing that stands in a folder makes this fail."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast, get_args

import yaml

from repq_cli.config import DEFAULTS, affected
from repq_cli.effects import NAMED_DATA, Affects
from repq_cli.errors import DataError
from repq_cli.files import parsed_json, read_regular
from repq_cli.report.records import SUFFIX, Record, record_files, records_in
from repq_cli.report.runs import Bits, Measured, Metric, Run, Status
from repq_cli.runs.folder import CONFIG, ROW, RunFolder, folders_with
from repq_cli.runs.row import Row
from repq_cli.targets import HAVE_IDENTITY
from repq_cli.yaml_text import parsed_yaml

STATUSES = get_args(Status)
LARGEST_FILE = 1 << 24  # bytes of a row, a configuration or an environment
LARGEST = 1e100  # number that a row may hold, so that none of our sums overflows

# Keys that older runs lack, and what they did: what is their default today, but for those said here.
LATER = {
    **{key: DEFAULTS[key] for key in ("fp.weights", "fp.head", "fp.input", "quant.layers", "mode.stats_fraction")},
    **{key: DEFAULTS[key] for key in ("runtime.precision", "runtime.matmul", "loss", "score", "quant.signed_codes")},
    "data.train_resize": None,
    **dict.fromkeys(("data.randaugment", "data.mixup", "data.cutmix"), 0),
    "model.squeeze_excite": False,
    "quant.summands": "fp",  # what they did before there was a key
    **{f"qat.{key}": DEFAULTS[f"qat.{key}"] for key in ("freeze_steps_at", "reestimate_bn")},
    "qat.steps_within": None,
    **{key: DEFAULTS[key] for key in ("qat.teacher", "qat.distill_weight", "qat.temperature", "optim.step_lr")},
}


def find_runs(paths: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """The runs at and below ``paths`` in the order of their folders, and notes on what could not be read.

    A path is a run folder, any folder above, a summary.json, a file of records (see ``records.py``), or a folder of
    such files. Raises DataError for one that does not exist.
    """
    records, notes = find_records(paths)
    read = [_read_record(record, notes) for record in records]
    return [run for run in read if run is not None], sorted(notes)


def find_records(paths: Iterable[Path]) -> tuple[list[Record], list[str]]:
    """What ``find_runs`` reads, as it stands in the files."""
    folders: set[Path] = set()
    kept: dict[str, Record] = {}
    notes: list[str] = []

    def refused(error: OSError) -> None:
        notes.append(f"{error.filename} cannot be read.")

    for path in paths:
        files = record_files(path)
        kept |= {record.name: record for file in files for record in records_in(file, notes)}
        if path.is_file() and path.name == ROW:
            found = {path.parent.resolve()}
        elif path.is_dir():
            found = set(folders_with({ROW, CONFIG}, path.resolve(), refused))
        elif files:
            found = set()
        elif path.exists():
            raise DataError(
                f"{path} is neither a folder nor a {ROW} nor a {SUFFIX} of runs: name a run folder, a sweep, or a "
                f"folder of runs."
            )
        else:
            raise DataError(f"{path} does not exist: name a run folder, a sweep, or a folder that holds some.")
        if not found and not files:
            notes.append(f"{path} holds no runs.")
        folders |= found
    return [*(record_of(folder, notes) for folder in sorted(folders)), *kept.values()], notes


def read_run(folder: Path) -> tuple[Run | None, list[str]]:
    """The run in ``folder``, or None where it does not say what ran; and notes on what is wrong with it."""
    notes: list[str] = []
    return _read_record(record_of(folder, notes), notes), notes


def record_of(folder: Path, notes: list[str]) -> Record:
    """What the files in ``folder`` say of a run; a note for each that is damaged."""
    files = RunFolder(folder)
    row = _mapping(files.row_file, parsed_json, notes)
    config = _mapping(files.config_file, parsed_yaml, notes)
    env = _mapping(files.env_file, parsed_json, notes)
    return Record(_shown(folder), row, config, env, _has_content(files.log_file))


def _has_content(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except OSError:
        return False


def _read_record(record: Record, notes: list[str]) -> Run | None:
    shown, row, config, env, logged = record
    fields = _Fields(row or {}, config or {}, shown)
    model, rep, mode = (fields.text(key) for key in ("model", "rep", "mode"))
    weight_bits, act_bits = fields.whole("quant.weight_bits"), fields.whole("quant.act_bits")
    if model is None or rep is None or mode is None or weight_bits is None or act_bits is None:
        notes.append(f"{shown} is left out: its files do not say which model, rep, mode and bits ran.")
        return None
    status = fields.status() if row is not None else "unfinished"
    run = Run(
        folder=shown,
        status=status,
        model=model,
        rep=rep,
        mode=mode,
        data=fields.text("data"),
        task=fields.text("task"),
        seed=fields.whole("seed"),
        bits=Bits(weight_bits, act_bits),
        options=_options(config) if config is not None else _options_of_row(row or {}),
        configured=config is not None,
        metric=fields.metric(),
        numbers=fields.numbers(),
        values=fields.values(),
        identical=fields.values("identical"),
        finished=_text(_at(row, "lineage.finished")) or "",
        linked=_at(row, "lineage.same_as") is not None,
        machine=_machine(env or {}, config, row),
        fp_file=_text(_at(config, "fp.checkpoint")),
        data_hash=_text(_at(row, "lineage.data")),
        data_changed=bool(_at(row, "lineage.changed_data")),
        environment=_environment(env or {}, row),
        error=(_text(_at(row, "error")) or "").strip(),
        warnings=_texts(_at(row, "warnings")),
        began=logged or status not in ("failed", "interrupted") or bool(_at(row, "time")),
    )
    notes += fields.problems
    return run


class _Fields:
    """Typed looks at a row, and at the configuration where the row lacks something; ``problems`` gathers mistakes."""

    def __init__(self, row: Row, config: Row, folder: str) -> None:
        self.row, self.config, self.folder = row, config, folder
        self.problems: list[str] = []

    def text(self, key: str) -> str | None:
        """A name; in the configuration that of a section."""
        stored = self.config.get(key)
        return _text(self.row.get(key)) or _text(stored.get("name") if isinstance(stored, dict) else stored)

    def whole(self, key: str) -> int | None:
        for source in (self.row, self.config):
            value = _at(source, key)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
        return None

    def status(self) -> Status:
        status = self.row.get("status")
        if status in STATUSES:
            return cast(Status, status)
        self.problems.append(
            f"{self.folder}: status is {status!r}, none of {', '.join(STATUSES)}; it counts as failed."
        )
        return "failed"

    def metric(self) -> Metric | None:
        name, split = _text(_at(self.row, "metric.name")), _text(_at(self.row, "metric.split"))
        if name is None or split is None:
            if self.row.get("status") == "done":
                self.problems.append(f"{self.folder} is done, but its row does not say what was measured on which set.")
            return None
        return Metric(name, split, _at(self.row, "metric.higher_is_better") is not False)

    def numbers(self) -> dict[str, float]:
        found = {}
        for section in ("metric", "checks", "size", "cost", "time"):
            values = self.row.get(section)
            for key, value in values.items() if isinstance(values, dict) else ():
                if key not in ("name", "split", "higher_is_better") and self._is_number(f"{section}.{key}", value):
                    found[f"{section}.{key}"] = float(value)
        return found

    def values(self, what: str = "value") -> dict[Measured, float]:
        """What ``metrics`` says of each set, metric and engine: its mean, or how many pictures are ``identical``."""
        rows = self.row.get("metrics")
        found = {}
        for item in rows if isinstance(rows, list) else ():
            # Where all pictures are identical there is no mean, and where none are that is not said.
            due = isinstance(item, dict) and (what in item or "identical" not in (what, *item))
            if due and self._is_number(f"a {what} of metrics", item.get(what)):
                scale = item.get("scale")
                key = Measured(str(item.get("set")), scale, str(item.get("name")), str(item.get("engine")))
                if scale is None or isinstance(scale, int):
                    found[key] = float(item[what])
        return found

    def _is_number(self, key: str, value: Any) -> bool:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and -LARGEST < value < LARGEST:
            return True
        self.problems.append(
            f"{self.folder}: {key} is {value!r}, which is no usable number; it counts as not measured."
        )
        return False


def _mapping(path: Path, parse: Any, notes: list[str]) -> Row | None:
    """What a file holds if it can be read and is a mapping, else None; a note unless the file is not there."""
    try:
        content = parse(read_regular(path, LARGEST_FILE))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        notes.append(f"{_shown(path)} cannot be read: it is damaged, or was only half written.")
        return None
    if not isinstance(content, dict):
        notes.append(f"{_shown(path)} does not hold what a run writes into it.")
        return None
    return content


def _shown(path: Path) -> str:
    """Relative to the current folder where it is below."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _at(tree: Any, key: str) -> Any:
    """The value at a dotted key, or None."""
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(text for text in value if isinstance(text, str)) if isinstance(value, list) else ()


def _options(config: Row) -> dict[str, Any]:
    columns = ("mode.name", "quant.weight_bits", "quant.act_bits", "model.name", "data.name")
    flat = _flatten(config, "")
    named = "data._target_" not in flat or str(flat["data._target_"]).startswith(NAMED_DATA)
    kept = {key: value for key, value in flat.items() if _counts(key, named) and key not in columns}
    if kept.get("rep.name") in HAVE_IDENTITY:
        kept.setdefault("rep.identity", True)  # as it was before it could be anything else
    return {key: value for key, value in kept.items() if key not in LATER or value != LATER[key]}


def _options_of_row(row: Row) -> dict[str, Any]:
    return _options({"quant": row.get("quant"), "rep": {"name": row.get("rep")}})


def _counts(key: str, named_data: bool) -> bool:
    """Whether runs that differ in a key are no repetitions of each other; they are over seeds."""
    effect = affected(key)
    if effect is Affects.PLACE and key.startswith("data."):
        return not named_data  # else the folder is all that says which images those are
    return key != "seed" and effect in (Affects.FP, Affects.QAT)


def _flatten(tree: Any, prefix: str) -> dict[str, Any]:
    """Leaves under dotted keys; lists and names with numbers as text, so that all can be compared and hashed."""
    if prefix == "quant.layers" and isinstance(tree, dict):
        return {prefix: f"{{{', '.join(f'{name}: {bits}' for name, bits in tree.items())}}}"}
    if isinstance(tree, dict) and tree:
        parts = [_flatten(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in tree.items()]
        return {key: value for part in parts for key, value in part.items()}
    return {prefix: tree if isinstance(tree, (str, int, float, type(None))) else str(tree)}


def _machine(env: Row, config: Row | None, row: Row | None) -> str:
    """GPUs, processor, threads and torch as one text, empty where unknown."""
    gpus = env.get("gpus") if _at(config, "runtime.device") != "cpu" else None
    threads = _at(config, "runtime.threads") or env.get("threads")
    torch = _at(row, "lineage.torch_version")
    parts = [
        *(gpus if isinstance(gpus, list) else []),
        env.get("cpu"),
        threads and f"{threads} thread{'' if threads == 1 else 's'}",
        torch and f"torch {torch}",
    ]
    return ", ".join(str(part) for part in parts if part)


def _environment(env: Row, row: Row | None) -> dict[str, str]:
    """Facts about machine, versions and sources under the names of env.json, those that are known."""
    gpus, packages = env.get("gpus"), env.get("packages")
    facts = {key: env.get(key) for key in ("cpu", "gpus", "threads", "platform", "python", "packages", "git")}
    facts["gpus"] = ", ".join(map(_word, gpus)) if isinstance(gpus, list) else None
    facts["git"] = _at(env, "git.commit") or _at(row, "lineage.git_commit")
    if _at(env, "git.changed") is True:
        facts["git"] = f"{_word(facts['git'])}, with changes"
    facts |= packages if isinstance(packages, dict) else {}
    facts |= {"torch": _at(row, "lineage.torch_version") or facts.get("torch")}  # says of which build, too
    return {key: _word(value) for key, value in facts.items() if _word(value)}


def _word(value: Any) -> str:
    return str(value) if isinstance(value, (str, int)) else ""
