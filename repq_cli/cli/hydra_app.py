"""The Hydra apps, and how one is run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from repq_cli.cli.folders import register_resolvers
from repq_cli.errors import ConfigError, DataError, RepqError

CONFIGS = "repq_cli.configs"

register_resolvers()  # at import, because a launcher's worker processes import the apps and nothing else


_kept: list[Exception] = []


def _run_job(job: Callable[[], float | None]) -> float | None:
    """Keep a single run's error for ``run_app``, since Hydra would print a line of its own; a sweep's jobs do raise."""
    try:
        return job()
    except Exception as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        _kept.append(error)
        return None


@hydra.main(version_base="1.3", config_path=f"pkg://{CONFIGS}", config_name="train")
def train_app(config: DictConfig) -> float | None:
    """One training run, or one job of a sweep, in the folder that Hydra made; its deployed metric, for sweepers."""
    hydra_config = HydraConfig.get()
    if hydra_config.mode == RunMode.MULTIRUN:
        from repq_cli.cli.sweep_job import SweepJob

        alone = hydra_config.launcher["_target_"].endswith(".BasicLauncher")
        return SweepJob(Path(hydra_config.sweep.dir), int(hydra_config.job.num), alone).carry_out(plain(config))
    from repq_cli.cli.jobs import train_job

    return _run_job(lambda: train_job(plain(config), hydra_config.runtime.output_dir))


@hydra.main(version_base="1.3", config_path=f"pkg://{CONFIGS}", config_name="info")
def info_app(config: DictConfig) -> None:
    """Print what the configuration assembles."""
    from repq_cli.cli.info import info_job

    _run_job(lambda: info_job(plain(config)))


@hydra.main(version_base="1.3", config_path=f"pkg://{CONFIGS}", config_name="eval")
def eval_app(config: DictConfig) -> None:
    """Evaluate a finished run."""
    from repq_cli.cli.evaluate import eval_job

    _run_job(lambda: eval_job(plain(config)))


@hydra.main(version_base="1.3", config_path=f"pkg://{CONFIGS}", config_name="export")
def export_app(config: DictConfig) -> None:
    """Write the network of a finished run as a file to ship."""
    from repq_cli.cli.export import export_job

    _run_job(lambda: export_job(plain(config)))


@hydra.main(version_base="1.3", config_path=f"pkg://{CONFIGS}", config_name="bench")
def bench_app(config: DictConfig) -> None:
    """Time networks side by side."""
    from repq_cli.cli.bench import bench_job

    _run_job(lambda: bench_job(plain(config)))


@hydra.main(version_base="1.3", config_path=f"pkg://{CONFIGS}", config_name="diagnose")
def diagnose_app(config: DictConfig) -> None:
    """Say which layer of a finished run hurts."""
    from repq_cli.cli.diagnose import diagnose_job

    _run_job(lambda: diagnose_job(plain(config)))


@hydra.main(version_base="1.3", config_path=f"pkg://{CONFIGS}", config_name="upscale")
def upscale_app(config: DictConfig) -> None:
    """Enlarge image files."""
    from repq_cli.cli.upscale import upscale_job

    _run_job(lambda: upscale_job(plain(config)))


APPS = {
    "train": train_app,
    "eval": eval_app,
    "export": export_app,
    "upscale": upscale_app,
    "bench": bench_app,
    "info": info_app,
    "diagnose": diagnose_app,
}


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


def run_app(command: str, arguments: list[str]) -> int:
    """Run a Hydra app with ``arguments``; what goes wrong inside comes out as the exception that it is."""
    with _hydra_process(command, arguments):
        try:
            APPS[command]()
        except SystemExit as stop:
            return int(stop.code or 0) if not isinstance(stop.code, str) else 1
        except (HydraException, OmegaConfBaseException) as error:
            raise ours_behind(error) or ConfigError(f"Hydra refuses the arguments: {error}") from None
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            raise DataError(f"The run folder{where} cannot be used: {error.strerror}; choose another folder.") from None
        except Exception as error:
            raise ours_behind(error) or error from None
    if _kept:
        raise _kept.pop()
    return 0


def ours_behind(error: BaseException | None) -> RepqError | None:
    """The error of ours that Hydra or OmegaConf wrapped, if any."""
    while error is not None:
        if isinstance(error, RepqError):
            return error
        error = error.__cause__ or error.__context__
    return None
