"""Commands as Hydra apps: how one is run."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from pkgutil import resolve_name
from typing import Any

import hydra
from hydra._internal.hydra import Hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from repq_cli.cli.command_line import CommandLine
from repq_cli.cli.composing import CONFIGS, VERSION_BASE, Loader
from repq_cli.cli.folders import register_resolvers
from repq_cli.cli.foreign import in_our_words
from repq_cli.errors import ConfigError, DataError, RepqError
from repq_cli.files import way_out
from repq_cli.problems import Problem
from repq_cli.schema import MISSING
from repq_cli.targets import unnamed_plugins

register_resolvers()  # at import, because a launcher's worker processes import this file and nothing else


def plain(config: DictConfig) -> dict[str, object]:
    """The configuration as plain, resolved dicts; values that are still missing stay ``???``."""
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


def trusted(config: DictConfig, plugins: Sequence[str]) -> dict[str, object]:
    """The configuration as plain dicts. Raises ConfigError if it names other ``plugins`` than were typed."""
    tree = plain(config)
    if said := unnamed_plugins(tree.get("plugins"), plugins):
        raise ConfigError(str(Problem("plugins", tree["plugins"], said)))
    return tree


def show(command: str, arguments: list[str]) -> int:
    """What Hydra prints of a command's configuration, as the flags among ``arguments`` ask for it; the exit code."""

    @hydra.main(**VERSION_BASE, config_path=f"pkg://{CONFIGS}", config_name=command)
    def app(config: DictConfig) -> None:
        raise AssertionError(f"{arguments} run {command}")

    code: Any = 0
    text = io.StringIO() if {"--help", "-h"} & set(arguments) else None
    with _hydra_process(command, arguments), in_sentences(), nullcontext() if text is None else redirect_stdout(text):
        try:
            app()
        except SystemExit as stop:
            code = stop.code
    if text is not None:
        print(text.getvalue().replace(f": {MISSING}\n", ": …\n").rstrip())
    return int(code or 0) if not isinstance(code, str) else 1


def run_app(command: str, job: str, line: CommandLine, loader: Loader) -> None:
    """Run a command's Hydra app, which gives the composed configuration to ``job``, named ``MODULE:FUNCTION``.

    Plugins are those that were typed; a configuration that names others is refused. What goes wrong inside comes out
    as the exception that it is.
    """
    kept: list[Exception] = []

    def task(config: DictConfig) -> float | None:
        try:
            return resolve_name(job)(trusted(config, line.plugins))
        except Exception as error:
            kept.append(error)  # since Hydra would print a line of its own
            return None

    with _hydra_process(command, line.arguments), in_sentences():
        Hydra(task_name=command, config_loader=loader).run(command, task, line.overrides)
    if kept:
        raise kept[0]


@contextmanager
def _hydra_process(command: str, arguments: list[str]) -> Iterator[None]:
    """Hydra reads sys.argv, and leaves its exceptions to us only if HYDRA_FULL_ERROR is set."""
    argv, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = [f"repq {command}", *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv = argv
        if full_error is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full_error


@contextmanager
def in_sentences() -> Iterator[None]:
    """Errors of Hydra and of its run folder as ours, and ours as they are."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ours_behind(error) or ConfigError(f"The configuration {in_our_words(error)}.") from None
    except BrokenPipeError:  # the reader of a help has seen enough
        raise
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise DataError(f"The run folder{where} cannot be used: {error.strerror}; {way_out(error)}.") from None
    except Exception as error:
        raise ours_behind(error) or error from None


def ours_behind(error: BaseException | None) -> RepqError | None:
    """The error of ours that Hydra or OmegaConf wrapped, if any."""
    while error is not None:
        if isinstance(error, RepqError):
            return error
        error = error.__cause__ or error.__context__
    return None
