"""Networks of blocks; ``repq.models.NAME(…)`` makes the one of ``configs/model/NAME.yaml``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import resources
from types import ModuleType
from typing import Any


class _Networks(ModuleType):
    """Importing a file that defines a network of its own name (``ecbsr``) does not hide that network."""

    def __setattr__(self, name: str, value: object) -> None:
        file = resources.files("repq_cli.configs").joinpath("model").joinpath(f"{name}.yaml")
        if not (isinstance(value, ModuleType) and file.is_file()):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Networks


def __getattr__(name: str) -> Callable[..., Any]:
    if name.startswith("__"):
        raise AttributeError(name)
    from repq_cli.library.networks import named  # the one place here that knows configurations

    return named(name)


def __dir__() -> list[str]:
    from repq_cli.library.networks import names

    return names("model")
