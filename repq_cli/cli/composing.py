"""Hydra's configurations, composed once: nothing that was read or merged before is read or merged again.

Hydra composes a run three times and each job of a sweep as often: to see whether it is one, to check it, to run it.
What is composed is its own affair; here it is kept, as bytes, since whoever is given a configuration changes it.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from typing import Any

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository, IConfigRepository
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.default_element import ResultDefault
from hydra.core.object_type import ObjectType
from hydra.core.utils import JobRuntime, setup_globals
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig

from repq_cli.errors import DataError

CONFIGS = "repq_cli.configs"
MOST_KEPT = 1024  # configurations, of some 20 kB

_files: dict[tuple[str, str, str], bytes] = {}  # of packages: while a process runs they stay as they are, as code does
_merged: dict[bytes, bytes] = {}  # by what is merged


class Loader(ConfigLoaderImpl):
    """Hydra's loader for a command, of our configurations and of those that a ``--config-dir`` adds.

    Raises DataError where that is no folder.
    """

    def __init__(self, command: str, config_dir: str | None = None) -> None:
        version.setbase("1.3")
        setup_globals()
        JobRuntime.instance().set("name", command)
        super().__init__(_search_path(config_dir))
        self.repository = _Files(self.config_search_path)
        self._composed: dict[tuple[object, ...], bytes] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """A launcher's processes are given Hydra's own loader: there its classes are made anew, and not to be kept."""
        state = {"config_search_path": self.config_search_path, "repository": self.repository}
        return _made, (ConfigLoaderImpl, state)

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """What these overrides compose to. Raises Hydra's errors."""
        key = (config_name, *overrides, run_mode, validate_sweep_overrides)
        if key not in self._composed:
            composed = super().load_configuration(
                config_name, overrides, run_mode, from_shell, validate_sweep_overrides
            )
            _keep(self._composed, key, composed)
        return _copy(self._composed[key])

    def compose(self, config_name: str, overrides: Sequence[str]) -> DictConfig:
        """What one run is given, with Hydra's own section. Raises Hydra's errors."""
        return self.load_configuration(config_name, list(overrides), RunMode.RUN, from_shell=False)

    def _compose_config_from_defaults_list(self, defaults: list[ResultDefault], repo: IConfigRepository) -> DictConfig:
        parts = [(default.config_path, default.package, default.primary) for default in defaults]
        key = pickle.dumps([*parts, *(repo.load_config(str(path)) for path, _, _ in parts)])
        if key not in _merged:
            _keep(_merged, key, super()._compose_config_from_defaults_list(defaults, repo))
        return _copy(_merged[key])


class _Files(ConfigRepository):
    """Files as Hydra finds them on its search path; those that come with packages are read once."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _made, (ConfigRepository, self.__dict__)

    def __deepcopy__(self, memo: object) -> _Files:
        return self  # Hydra gives its copy another search path only for hydra.searchpath, which may not be set

    def load_config(self, config_path: str) -> ConfigResult | None:
        """A file with its header and its defaults list; None where there is none."""
        source = self._find_object_source(config_path, ObjectType.CONFIG)
        if source is None or source.scheme() == "file":
            return super().load_config(config_path)
        key = (source.scheme(), source.path, config_path)
        if key not in _files:
            _files[key] = pickle.dumps(super().load_config(config_path))
        return _copy(_files[key])


def _search_path(config_dir: str | None) -> ConfigSearchPath:
    path = create_config_search_path(f"pkg://{CONFIGS}")
    if config_dir is not None:
        if not os.path.isdir(config_dir):
            raise DataError(f"--config-dir {config_dir} is no folder: name one that holds configurations.")
        own = f"file://{os.path.abspath(config_dir)}"
        path.prepend(provider="command-line", path=own, anchor=SearchPathQuery(provider="schema"))
    return path


def _keep(kept: dict[Any, bytes], key: object, config: DictConfig) -> None:
    """Keep a configuration, and no more than so many: the oldest goes."""
    kept[key] = pickle.dumps(config)
    if len(kept) > MOST_KEPT:
        del kept[next(iter(kept))]


def _made(kind: type[Any], state: dict[str, Any]) -> Any:
    """An object of Hydra's with what one of ours holds."""
    made = object.__new__(kind)
    made.__dict__.update(state)
    return made


def _copy(kept: bytes) -> Any:
    return pickle.loads(kept)  # noqa: S301  # what this process kept
