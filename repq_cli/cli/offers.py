"""What may stand at the cursor of a command with a configuration, of files alone: without Hydra and torch."""

from __future__ import annotations

import itertools
import os
import re
import typing
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from repq_cli.cli.guesses import OFFERED_FLAGS
from repq_cli.cli.paths import is_path
from repq_cli.config import keys_of, section_type
from repq_cli.runs.folder import RunFolder
from repq_cli.runs.outputs import OUTPUTS
from repq_cli.runs.sweep import SweepFolder
from repq_cli.schema import KEYS
from repq_cli.typecheck import bare

AFTER_FLAGS: dict[str, tuple[str, ...]] = {
    "--cfg": ("job", "hydra", "all"),
    "-c": ("job", "hydra", "all"),
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
    "-i": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
}
LAUNCHERS = {
    "basic": "hydra",
    "joblib": "hydra_plugins.hydra_joblib_launcher",
    "submitit_local": "hydra_plugins.hydra_submitit_launcher",
    "submitit_slurm": "hydra_plugins.hydra_submitit_launcher",
    "ray": "hydra_plugins.hydra_ray_launcher",
}
OF_HYDRA = ("hydra.run.dir=", "hydra.sweep.dir=", "hydra/launcher=")
SHELLS_SAFE = re.compile(r"[\w./~=+,:@%\[\]-]*")  # a shell splits the answer where there are spaces
MOST_RUNS = 200


def offers(command: str, before: Sequence[str], word: str) -> list[str]:
    """All that may stand for ``word``, which begins so, behind the words ``before`` it."""
    last = before[-1] if before else ""
    if last in ("--config-dir", "-cd"):
        found: Iterator[str] = _paths(word, folders=True)
    elif last in AFTER_FLAGS:
        found = iter(AFTER_FLAGS[last])
    elif word.startswith("-"):
        found = (flag for flag in OFFERED_FLAGS if command == "train" or flag != "--multirun")
    elif "=" in word:
        found = _values(command, before, word)
    else:
        found = _keys(command, before, word)
    legal = {text for text in found if text.startswith(word) and SHELLS_SAFE.fullmatch(text)}
    return sorted(legal - {f"{text}/" for text in legal})  # a run is a folder, and named once


def _keys(command: str, before: Sequence[str], word: str) -> Iterator[str]:
    """Keys and groups, each with its sign; a section up to its dot, and its keys behind that."""
    prefix = "+" if word.startswith("+") else ""
    own, keys = KEYS[command], {text.lstrip("+").partition("=")[0] for text in before}
    section, dot, _ = word.lstrip("+").partition(".")
    if dot:
        names = _section_keys(command, before, section)
        yield from (f"{prefix}{section}.{name}=" for name in names if f"{section}.{name}" not in keys)
        return
    for group in _groups(command):
        yield f"{prefix}{group}="
    for key, annotation in own.items():
        if section_type(annotation) is not None:
            yield f"{prefix}{key}."
        elif key not in keys and key != "input_shape":
            yield f"{prefix}{key}="
    if command == "train":
        yield from ("resume=", *OF_HYDRA)


def _groups(command: str) -> list[str]:
    """Folders of options that the command takes."""
    found = [folder.name for folder in files("repq_cli.configs").iterdir() if folder.is_dir()]
    more = {"experiment", "sweep"} if command in ("train", "info") else set()
    return [name for name in found if (name in KEYS[command] or name in more) and name not in ("hydra", "__pycache__")]


def _section_keys(command: str, before: Sequence[str], section: str) -> list[str]:
    """Keys of a section: its own, and those that the chosen option brings."""
    if section == "hydra":
        return ["run.dir", "sweep.dir"]
    kind = section_type(KEYS[command].get(section))
    if kind is None:
        return []
    own = [key for key in keys_of(kind) if key not in ("_target_", "name")]
    return list(dict.fromkeys([*own, *_brought(before, section)]))


def _brought(before: Sequence[str], section: str) -> dict[str, Any]:
    """What the options that were chosen, or the default one, say of a section."""
    chosen = {key.lstrip("+"): name for key, _, name in (text.partition("=") for text in before)}
    experiment, model = _option("experiment", chosen.get("experiment")), None
    for entry in experiment.get("defaults", []) if isinstance(experiment.get("defaults"), list) else []:
        model = entry.get("/model", model) if isinstance(entry, dict) else model
    of_model = _option("model", chosen.get("model", model))
    name = chosen.get(section)
    for content in (experiment, of_model):
        for entry in content.get("defaults", []) if isinstance(content.get("defaults"), list) else []:
            if name is None and isinstance(entry, dict):
                name = entry.get(f"override /{section}")
    name = name or {"data": "digits", "optim": "sgd", "schedule": "cosine", "quant": "w8a8"}.get(section)
    content = of_model if section == "model" else _option(section, name)
    found = content.get(section, content)
    return {key: value for key, value in found.items() if key not in ("_target_", "name", "defaults")}


def _option(group: str, name: str | None) -> dict[str, Any]:
    """The content of a configuration file of ours; empty where there is none."""
    if not name or not re.fullmatch(r"[\w-]+", name):
        return {}
    import yaml

    path = files("repq_cli.configs") / group / f"{name}.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    return content if isinstance(content, dict) else {}


def _values(command: str, before: Sequence[str], word: str) -> Iterator[str]:
    """Values of the key in front of the sign; of several, the last one."""
    key, _, value = word.partition("=")
    name = key.lstrip("+")
    start, comma, _ = value.rpartition(",")
    kept = f"{key}={start}{comma}"
    if name in ("run", "resume"):
        yield from (f"{key}={path}" for path in _runs(resume=name == "resume"))
    if is_path(name) and name in ("resume", *_known(command, before)):
        yield from (f"{key}={path}" for path in _paths(value, folders=name in ("run", "resume", "data.root")))
    elif name in _groups(command):
        yield from (f"{kept}{option}" for option in _options_of(name, before))
    elif name == "hydra/launcher":
        yield from (f"{kept}{launcher}" for launcher, package in LAUNCHERS.items() if _is_installed(package))
    else:
        yield from (f"{kept}{choice}" for choice in _choices_of(command, before, name))


def _known(command: str, before: Sequence[str]) -> list[str]:
    """Path keys that the command has."""
    section_keys = (f"{section}.{key}" for section in ("fp", "data") for key in _section_keys(command, before, section))
    of_hydra = ("hydra.run.dir", "hydra.sweep.dir") if command == "train" else ()
    return [*KEYS[command], *section_keys, *of_hydra]


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def _options_of(group: str, before: Sequence[str]) -> Iterator[str]:
    """Names of files: ours, and those of a ``--config-dir``."""
    folders: list[Any] = [files("repq_cli.configs") / group]
    named = [folder for flag, folder in itertools.pairwise(before) if flag in ("--config-dir", "-cd")]
    folders += [Path(folder).expanduser() / group for folder in named]
    for folder in folders:
        if folder.is_dir():
            yield from (file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def _choices_of(command: str, before: Sequence[str], key: str) -> list[str]:
    """The values of a key that has few."""
    section, _, name = key.partition(".")
    annotation = KEYS[command].get(section)
    if name:
        kind = section_type(annotation)
        annotation = keys_of(kind).get(name) if kind is not None else None
        if annotation is None and isinstance(_brought(before, section).get(name), bool):
            annotation = bool
    return list(dict.fromkeys(_choices(annotation)))


def _choices(annotation: Any) -> Iterator[str]:
    """Words of an annotation."""
    kind = bare(annotation)
    if kind is bool:
        yield from ("true", "false")
    elif kind is type(None):
        yield "null"
    elif typing.get_origin(kind) is Literal:
        yield from (str(word).lower() if isinstance(word, bool) else str(word) for word in typing.get_args(kind))
    elif typing.get_origin(kind) is not dict:
        for part in typing.get_args(kind):
            yield from _choices(part)


def _runs(resume: bool) -> list[Path]:
    """Runs below outputs/, the newest first: those that are done, or all that may go on, and sweeps."""
    sweeps = _newest(OUTPUTS / "sweep", lambda path: SweepFolder(path).is_used)
    runs = [*_newest(OUTPUTS / "train", lambda path: RunFolder(path).is_used)]
    for sweep in sweeps if not resume else ():
        runs += _newest(sweep, lambda path: RunFolder(path).is_used)
    runs = runs[:MOST_RUNS]
    return [Path("auto"), *runs, *sweeps] if resume else [run for run in runs if RunFolder(run).status == "done"]


def _newest(folder: Path, wanted: Callable[[Path], bool]) -> list[Path]:
    found = sorted(folder.iterdir(), reverse=True) if folder.is_dir() else []
    return [path for path in found[:MOST_RUNS] if path.is_dir() and wanted(path)]


def _paths(begun: str, folders: bool) -> Iterator[str]:
    """Folders, with a slash at their end, and files, which begin so."""
    head, slash, tail = begun.rpartition("/")
    place = os.path.expanduser(f"{head}{slash}") or "."
    if not os.path.isdir(place):
        return
    for entry in os.scandir(place):
        if entry.name.startswith(tail) and (tail.startswith(".") or not entry.name.startswith(".")):
            if entry.is_dir():
                yield f"{head}{slash}{entry.name}/"
            elif not folders:
                yield f"{head}{slash}{entry.name}"
