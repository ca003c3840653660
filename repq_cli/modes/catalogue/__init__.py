"""Every mode: the classes in this folder's files. Importing it imports no torch."""

from __future__ import annotations

import importlib
import pkgutil

from repq_cli.modes.mode import Mode, UnknownMode


def _found() -> list[Mode]:
    modules = [importlib.import_module(f"{__name__}.{file.name}") for file in pkgutil.iter_modules(__path__)]
    classes = [(module, value) for module in modules for value in vars(module).values() if isinstance(value, type)]
    return [value() for module, value in classes if issubclass(value, Mode) and value.__module__ == module.__name__]


MODES: dict[str, Mode] = {mode.name: mode for mode in sorted(_found(), key=lambda mode: mode.order)}

AUTO = "auto"  # a mode that is not decided yet; see modes/auto.py


def mode_named(name: str) -> Mode:
    """The mode of that name; a stored row may have one that there is not."""
    return MODES.get(name) or UnknownMode(name)


def mode_order(name: str) -> tuple[int, str]:
    """What sorts the names of modes: the papers' order."""
    return mode_named(name).order, name
