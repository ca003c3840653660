"""Hydra's configurations, composed once: the files of a choice of options are read and merged for the first run alone.

Hydra composes a run three times and each job of a sweep as often: to see whether it is one, to check it, to run it.
What the options make is kept, as bytes, since whoever is given a configuration changes it; values are set on a copy.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import __version__, version
from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobRuntime, setup_globals
from hydra.errors import ConfigCompositionException
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from repq_cli.errors import ConfigError, DataError
from repq_cli.files import read_regular
from repq_cli.yaml_text import LARGEST, parsed_yaml

CONFIGS = "repq_cli.configs"
# Hydra 1.3 has to be told not to do as 1.1 did; later ones do as 1.3 does, and warn of being told.
VERSION_BASE = {"version_base": "1.3"} if __version__.startswith("1.3.") else {}
MOST_KEPT = 1024  # configurations, of some 20 kB
# Of Hydra's own keys those that nothing else is made of while it composes.
ONLY_VALUES = ("hydra.run.", "hydra.sweep.", "hydra.mode", "hydra.verbose")

_Kept = dict[tuple[object, ...], bytes]
_files: _Kept = {}  # of packages: while a process runs they stay as they are, as code does
_chosen: _Kept = {}  # what options of those make


class Loader(ConfigLoaderImpl):
    """Hydra's loader for a command, of our configurations and of those that a ``--config-dir`` adds.

    Raises DataError where that is no folder.
    """

    def __init__(self, command: str, config_dir: str | None = None) -> None:
        for base in VERSION_BASE.values():
            version.setbase(base)
        setup_globals()
        JobRuntime.instance().set("name", command)
        super().__init__(_search_path(config_dir))
        self.repository = _Files(self.config_search_path)
        self._chosen = _chosen if config_dir is None else {}

    def __reduce__(self) -> tuple[Any, ...]:
        """A launcher's processes are given Hydra's own loader: there its classes are made anew, and not to be kept."""
        state = vars(ConfigLoaderImpl(self.config_search_path)) | {"repository": self.repository}
        return _made, (ConfigLoaderImpl, state)

    def compose(self, config_name: str, overrides: Sequence[str]) -> DictConfig:
        """What one run is given, with Hydra's own section. Raises Hydra's errors."""
        return self.load_configuration(config_name, list(overrides), RunMode.RUN, from_shell=False)

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """What these overrides compose to. Raises Hydra's errors."""
        parsed = OverridesParser.create().parse_overrides(overrides)
        if validate_sweep_overrides:
            self.validate_sweep_overrides_legal(parsed, run_mode, from_shell)
        single = [override for override in parsed if not override.is_sweep_override()]  # the others are for each job
        values = [override for override in single if self._is_value(override)]
        options = [str(override.input_line) for override in single if override not in values]
        key = (config_name, *options, run_mode)
        if key not in self._chosen:
            composed = super().load_configuration(config_name, options, run_mode, from_shell, False)
            self._chosen[key] = pickle.dumps(composed)
            if len(self._chosen) > MOST_KEPT:
                del self._chosen[next(iter(self._chosen))]
        tree: DictConfig = _copy(self._chosen[key])
        try:
            self._apply_overrides_to_config(values, tree)
            _note(parsed, tree)
        except OmegaConfBaseException as error:
            raise ConfigCompositionException from error
        return tree

    def _is_value(self, override: Override) -> bool:
        """Whether it sets a key, and neither chooses an option nor is made use of by Hydra as it composes."""
        key = override.key_or_group
        if override.package is not None or self.repository.group_exists(key):
            return False
        return not key.startswith("hydra.") or key.startswith(ONLY_VALUES)


def _note(overrides: Sequence[Override], tree: DictConfig) -> None:
    """What Hydra's section says of the overrides that it was composed of, and of where."""
    of_hydra = [override for override in overrides if override.is_hydra_override()]
    others = [override for override in overrides if override not in of_hydra]
    tree.hydra.overrides.hydra = [override.input_line for override in of_hydra]
    tree.hydra.overrides.task = [override.input_line for override in others]
    name_of = getattr(config_loader_impl, "get_overrides_dirname", None)
    if name_of is not None:  # since Hydra 1.4 there is none
        how = tree.hydra.job.config.override_dirname
        tree.hydra.job.override_dirname = name_of(others, how.exclude_keys, how.item_sep, how.kv_sep)
    tree.hydra.runtime.cwd = os.getcwd()


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
            if source is not None:
                _require_modest(Path(source.path, source._normalize_file_name(config_path)))
            return super().load_config(config_path)
        key = (source.scheme(), source.path, config_path)
        if key not in _files:
            _files[key] = pickle.dumps(super().load_config(config_path))
        return _copy(_files[key])


def _require_modest(path: Path) -> None:
    """Raise ConfigError for a file that stands for more than memory holds, of which Hydra would make all."""
    try:
        parsed_yaml(read_regular(path, LARGEST))
    except yaml.YAMLError:  # of which Hydra tells the line
        return
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"The configuration {path} cannot be read ({error}): mend or remove it.") from error


def _search_path(config_dir: str | None) -> ConfigSearchPath:
    path = create_config_search_path(f"pkg://{CONFIGS}")
    if config_dir is not None:
        if not os.path.isdir(config_dir):
            raise DataError(f"--config-dir {config_dir} is no folder: name one that holds configurations.")
        own = f"file://{os.path.abspath(config_dir)}"
        path.prepend(provider="command-line", path=own, anchor=SearchPathQuery(provider="schema"))
    return path


def _made(kind: type[Any], state: dict[str, Any]) -> Any:
    """An object of Hydra's with what one of ours holds."""
    made = object.__new__(kind)
    made.__dict__.update(state)
    return made


def _copy(kept: bytes) -> Any:
    return pickle.loads(kept)  # noqa: S301  # what this process kept
