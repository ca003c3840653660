"""Files that installed packages ship."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from repq_cli.errors import DataError


def packaged(package: str, name: str, instead: str) -> Path:
    """The path of a package's file, found without importing the package, which for scikit-learn takes a second.

    Raises DataError, which tells to install the package anew or to use what ``instead`` says.
    """
    spec = find_spec(package)
    folders = spec.submodule_search_locations if spec is not None else None
    path = Path(next(iter(folders or [package])), name)
    if not path.is_file():
        raise DataError(f"{path} is missing from the installed {package}: install it anew, or use {instead}.")
    return path
