"""Configuration files: of the folder that ``--config-dir`` names, and our own."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from repq_cli.cli.composing import CONFIGS
from repq_cli.errors import ConfigError
from repq_cli.yaml_text import parsed_yaml


def config_file(name: str, config_dir: str | None) -> dict[str, Any]:
    """The content of a configuration file, of the user's folder or our own; empty where there is no such file.

    Raises ConfigError for one that cannot be read.
    """
    for path in [*([Path(config_dir) / name] if config_dir else []), files(CONFIGS).joinpath(name)]:
        if path.is_file():
            try:
                content = parsed_yaml(path.read_bytes())
            except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
                said = " ".join(str(error).split())
                raise ConfigError(f"The configuration {path} cannot be read ({said}): mend or remove it.") from error
            return content if isinstance(content, dict) else {}
    return {}
