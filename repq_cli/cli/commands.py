"""What each command does with its arguments: check them, run its Hydra app, decide the exit code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from repq_cli.cli.command_line import CommandLine
from repq_cli.cli.folders import OUTPUTS, reserve
from repq_cli.cli.hydra_app import run_app
from repq_cli.cli.overrides import Checker
from repq_cli.errors import ConfigError, RepqError
from repq_cli.report.row import ROW, read_row


def info(arguments: list[str]) -> int:
    """``repq info``."""
    line = CommandLine.parse(arguments)
    return run_app("info", arguments if line.only_shows else Checker("info", line).check().arguments)


def evaluate(arguments: list[str]) -> int:
    """``repq eval``."""
    line = CommandLine.parse(arguments)
    keys = [override.lstrip("+~").partition("=")[0] for override in line.overrides]
    if "data" not in keys and any(key.startswith("data.") for key in keys):
        raise ConfigError(
            "Keys of data need data itself: data=NAME data.KEY=VALUE; without any, the run's own is read."
        )
    return run_app("eval", arguments if line.only_shows else Checker("eval", line).check().arguments)


def upscale(arguments: list[str]) -> int:
    """``repq upscale``."""
    line = CommandLine.parse(arguments)
    return run_app("upscale", arguments if line.only_shows else Checker("upscale", line).check().arguments)


def train(arguments: list[str]) -> int:
    """``repq train``, a sweep with ``-m``, or the continuation of a run with ``resume=``."""
    line = CommandLine.parse(arguments)
    if line.only_shows:
        return run_app("train", fit_shown(line))
    resume = [override for override in line.overrides if override.lstrip("+").startswith("resume=")]
    if resume:
        line.overrides = [override for override in line.overrides if override not in resume]
        return resume_run(resume[-1].partition("=")[2], line)
    line = Checker("train", line).check()
    if not line.multirun:
        return run_app("train", line.arguments)
    return sweep(line)


def fit_shown(line: CommandLine) -> list[str]:
    """Arguments for ``--cfg`` and the like: checked where a model is named, else as they are."""
    if line.has("--hydra-help"):  # is about Hydra alone, and trips over a model
        return line.flags
    named = any(override.lstrip("+").startswith(("model=", "experiment=")) for override in line.overrides)
    return Checker("train", line).check().arguments if named else line.arguments


def sweep(line: CommandLine) -> int:
    """Run every job of a sweep; the rows that they leave decide the exit code."""
    named = [override.partition("=")[2] for override in line.overrides if override.startswith("hydra.sweep.dir=")]
    folder = Path(named[-1]) if named else reserve(OUTPUTS / "sweep", "train")
    if not named:
        line.overrides.append(f"hydra.sweep.dir={folder}")
    before = set(folder.rglob(ROW))
    code, failure = 0, None
    try:
        code = run_app("train", line.arguments)
    except Exception as error:  # of the first job that failed; the others have run
        code, failure = 1, error
    new = sorted(set(folder.rglob(ROW)) - before)
    rows = {path.parent: row for path in new if (row := read_row(path.parent)) is not None}
    failed = {path: row for path, row in rows.items() if row["status"] != "done"}
    if failure is not None and not failed:
        raise failure
    for path, row in failed.items():
        print(f"failed: {path} ({row.get('model')}, rep {row.get('rep')}, mode {row.get('mode')}): {row['error']}")
    print(f"{len(rows) - len(failed)} of {len(rows)} runs done, rows in {folder}")
    return 1 if failed else code


def resume_run(target: str, line: CommandLine) -> int:
    """``resume=DIR`` goes on with a run; ``resume=auto`` with the newest unfinished one of the same configuration."""
    from repq_cli.cli.jobs import resume_job, stored_config

    changes = line.overrides
    if target == "auto":
        target = str(_newest_like(line))
        changes = [text for text in changes if text.startswith(("runtime.", "verbosity="))]
    folder = Path(target)
    if not (folder / "config.yaml").is_file():
        raise ConfigError(f"resume={target} is no run folder: it holds no config.yaml; name one below {OUTPUTS}.")
    config = stored_config(folder)
    for override in changes:
        _apply(override, config)
    resume_job(config, folder)
    return 0


def _apply(override: str, config: dict[str, object]) -> None:
    """Set ``runtime.*`` or ``verbosity`` of a stored configuration."""
    import yaml

    key, _, text = override.lstrip("+").partition("=")
    section, _, name = key.partition(".")
    if key == "verbosity":
        config[key] = text
    elif section == "runtime" and isinstance(config["runtime"], dict) and name in config["runtime"]:
        config["runtime"][name] = yaml.safe_load(text)
    else:
        raise ConfigError(
            f"{override} cannot be changed by resume=, only runtime.* and verbosity can: start a new run."
        )


def _newest_like(line: CommandLine) -> Path:
    """The newest run folder whose configuration is that of this command line and which is not done."""
    import yaml

    from repq_cli.cli.jobs import compose_plain, same_run

    checked = Checker("train", line).check()
    wanted = compose_plain(checked.overrides)
    for path in sorted(_run_configs(), reverse=True):
        row = None
        try:
            row = read_row(path.parent)
        except RepqError:
            continue
        if (row is None or row["status"] != "done") and same_run(yaml.safe_load(path.read_text()), wanted):
            return path.parent
    raise ConfigError(
        f"resume=auto finds no unfinished run of this configuration below {OUTPUTS}: leave resume=auto out."
    )


def _run_configs() -> Sequence[Path]:
    return list((OUTPUTS / "train").glob("*/config.yaml"))
