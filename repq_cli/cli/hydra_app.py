"""Commands as Hydra apps: how one is run."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pkgutil import resolve_name

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from repq_cli.cli.folders import register_resolvers
from repq_cli.errors import ConfigError, DataError, RepqError
from repq_cli.problems import Problem
from repq_cli.targets import unnamed_plugins

CONFIGS = "repq_cli.configs"

register_resolvers()  # at import, because a launcher's worker processes import this file and nothing else


def plain(config: DictConfig) -> dict[str, object]:
    """The configuration as plain, resolved dicts; values that are still missing stay ``???``."""
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


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


def run_app(command: str, job: str, arguments: list[str], plugins: Sequence[str]) -> int:
    """Run a command's Hydra app, which gives the composed configuration to ``job``, named ``MODULE:FUNCTION``.

    plugins: those that were typed; a configuration that names others is refused.

    What goes wrong inside comes out as the exception that it is.
    """
    kept: list[Exception] = []

    @hydra.main(version_base="1.3", config_path=f"pkg://{CONFIGS}", config_name=command)
    def app(config: DictConfig) -> float | None:
        try:
            tree = plain(config)
            if said := unnamed_plugins(tree.get("plugins"), plugins):
                raise ConfigError(str(Problem("plugins", tree["plugins"], said)))
            return resolve_name(job)(tree)
        except Exception as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise
            kept.append(error)  # since Hydra would print a line of its own
            return None

    with _hydra_process(command, arguments):
        try:
            app()
        except SystemExit as stop:
            return int(stop.code or 0) if not isinstance(stop.code, str) else 1
        except (HydraException, OmegaConfBaseException) as error:
            raise ours_behind(error) or ConfigError(f"Hydra refuses the arguments: {error}") from None
        except BrokenPipeError:  # the reader of a help has seen enough
            raise
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            raise DataError(f"The run folder{where} cannot be used: {error.strerror}; choose another folder.") from None
        except Exception as error:
            raise ours_behind(error) or error from None
    if kept:
        raise kept[0]
    return 0


def ours_behind(error: BaseException | None) -> RepqError | None:
    """The error of ours that Hydra or OmegaConf wrapped, if any."""
    while error is not None:
        if isinstance(error, RepqError):
            return error
        error = error.__cause__ or error.__context__
    return None
