"""What Hydra's own section may hold: it names classes, commands and folders of code, and files may set it, too.

Hydra builds its launcher, its sweeper, its callbacks and the handlers of its loggers from ``_target_`` and the like.
Known launchers and sweepers are all that a run has use for; what runs commands or reaches other machines counts only
where it was typed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from repq_cli.cli.command_line import CommandLine
from repq_cli.cli.trial_options import problems_of as problems_of_trials
from repq_cli.problems import Problem

LAUNCHERS = (
    "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
    "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher",
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher",
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher",
    "hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher",
)
SWEEPERS, SAMPLED = ("basic", "optuna"), "hydra/sweeper=optuna"
BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
# Keys whose values are commands, or reach programs that are started.
OF_COMMANDS = (
    "hydra.job.env_set",
    "hydra.launcher.setup",
    "hydra.launcher.python",
    "hydra.launcher.srun_args",
    "hydra.launcher.additional_parameters",
    "hydra.launcher.ray",
    "hydra.sweeper.storage",
)
SUBMITIT_FOLDER = "${hydra.sweep.dir}/.submitit/%j"  # its own default
LOGGING = ("job_logging", "hydra_logging")
HANDLER, STREAMS = "logging.StreamHandler", ("ext://sys.stdout", "ext://sys.stderr")
NO_FOLDERS = "cannot be set: configurations of your own are found by --config-dir DIR"


def forbidden_key(key: str) -> str | None:
    """What is wrong with setting a key at all, or None: what is asked before anything is composed."""
    if key == "hydra":
        return "cannot be set as a whole: name one of its keys, such as hydra.run.dir"
    return NO_FOLDERS if key.startswith("hydra.searchpath") else None


def problems_of(hydra: Mapping[str, Any], line: CommandLine) -> Iterator[Problem]:
    """What is wrong with Hydra's section, as it is before its interpolations are resolved, of a command line."""
    launcher, sweeper = (_section(hydra, key) for key in ("launcher", "sweeper"))
    if launcher.get("_target_") not in LAUNCHERS:
        names = ", ".join(name.rpartition(".")[2] for name in LAUNCHERS)
        yield Problem("hydra.launcher._target_", launcher.get("_target_"), f"is no known launcher; known are {names}")
    yield from _of_sweeper(sweeper, line)
    if sweeper.get("params") and not line.only_shows:
        yield Problem("hydra.sweeper.params", sweeper["params"], "may stand in a sweep/NAME.yaml alone; use sweep=NAME")
    if hydra.get("callbacks"):
        yield Problem("hydra.callbacks", hydra["callbacks"], "may name none: a run calls nothing beside its own job")
    for key in _targets(hydra, "hydra"):
        if key not in ("hydra.launcher._target_", "hydra.sweeper._target_") and not key.startswith("hydra.callbacks."):
            yield Problem(key, "", "may not stand there: it would be called")
    for section in LOGGING:
        for key, value in _of_logging(hydra.get(section), f"hydra.{section}"):
            yield Problem(key, value, "may not be set: loggers of a run print to the terminal alone")
    verbose = hydra.get("verbose")
    if not isinstance(verbose, (bool, str)) and not _is_names(verbose):
        yield Problem("hydra.verbose", verbose, "must be true, false, a logger's name or a list of names")
    if str(hydra.get("mode")).endswith("MULTIRUN") and not (line.multirun or line.only_shows):
        yield Problem("hydra.mode", "MULTIRUN", "is set by a file; add -m to run a sweep")
    written = hydra.get("output_subdir")
    if written is not None and not _is_typed("hydra.output_subdir", line):
        yield Problem(
            "hydra.output_subdir", written, "names where to write, and comes from a file: type it, or use null"
        )
    for key in OF_COMMANDS:
        for leaf, value in _leaves(_at(hydra, key), key):
            if value not in (None, "", []) and not _is_typed(leaf, line):
                yield Problem(leaf, value, "runs or reaches programs, and comes from a file: type it if you trust it")
    for leaf, value in _leaves(launcher, "hydra.launcher"):
        if isinstance(value, str) and not value.isprintable() and not _is_typed(leaf, line):
            yield Problem(leaf, value, "may hold no line breaks: it becomes a line of a script")
    if launcher.get("submitit_folder") not in (None, SUBMITIT_FOLDER):
        yield Problem("hydra.launcher.submitit_folder", launcher["submitit_folder"], "cannot be set: it is the sweep's")


def _of_sweeper(sweeper: Mapping[str, Any], line: CommandLine) -> Iterator[Problem]:
    """Hydra's own sweeper, which is never called, or the options of ours for Optuna, where that was typed."""
    target = sweeper.get("_target_")
    if line.sampled and not (line.multirun or line.only_shows):
        yield Problem("hydra/sweeper", "optuna", "is for a sweep: add -m")
    elif line.sampled:
        yield from problems_of_trials(sweeper)
    elif target is None:
        yield Problem("hydra/sweeper", "", f"is chosen by a file: type {SAMPLED} if that is what you want")
    elif target != BASIC_SWEEPER:
        yield Problem("hydra.sweeper._target_", target, "is not the sweeper of repq; leave it out")


def _is_typed(key: str, line: CommandLine) -> bool:
    """Whether the key, or what it is in, was typed."""
    return any(f"{key}.".startswith(f"{word}.") for word in line.typed_keys)


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """What is no section, with its key."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}")
    else:
        yield path, value


def _section(tree: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = tree.get(key)
    return found if isinstance(found, Mapping) else {}


def _at(hydra: Mapping[str, Any], key: str) -> Any:
    *path, last = key.split(".")[1:]
    for part in path:
        hydra = _section(hydra, part)
    return hydra.get(last)


def _is_names(value: Any) -> bool:
    return isinstance(value, Sequence) and all(isinstance(name, str) for name in value)


def _targets(value: Any, path: str) -> Iterator[str]:
    """The keys of all that Hydra would call."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        if key == "_target_":
            yield f"{path}._target_"
        yield from _targets(item, f"{path}.{key}")


def _of_logging(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """What ``logging.config`` would import, call or write to, but for handlers that print."""
    if isinstance(value, str):
        if "://" in value and value not in STREAMS:
            yield path, value
        if "${" in value:
            yield path, value
        return
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        own = f"{path}.{key}"
        if str(key) in ("()", ".", "factory", "filename", "args") or (key == "class" and item != HANDLER):
            yield own, item
        else:
            yield from _of_logging(item, own)
