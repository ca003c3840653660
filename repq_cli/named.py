"""From the dotted name of a function or class to itself; only ``build`` asks, which knows what may be named."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any, cast

from repq_cli.errors import ConfigError
from repq_cli.targets import plugin_of
from repq_cli.typecheck import annotations_of


def function_of(target: str, plugin: str | None) -> Callable[..., Any]:
    """The function or class of that name; ``plugin``: the package of somebody else's that it has to be defined in.

    Raises ConfigError, with a predicate of the name, for what cannot be imported or is neither.
    """
    return _called(_imported(target, plugin), target, plugin)


def _imported(target: str, plugin: str | None) -> Any:
    module_name, _, name = target.rpartition(".")
    if plugin is not None and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a package that lies where the command runs is found, behind all others
    try:
        return getattr(importlib.import_module(module_name), name)
    except Exception as error:  # a plugin may raise anything as it is imported
        if plugin is None:
            raise
        raise ConfigError(f"names nothing that can be imported ({error})") from error


def _called(found: Any, target: str, plugin: str | None) -> Callable[..., Any]:
    """``found`` if it is a function or a class that the plugin itself defines, and its arguments can be read."""
    defined: Any = inspect.unwrap(found) if callable(found) else found
    if not inspect.isfunction(defined) and not (inspect.isclass(defined) and not issubclass(defined, BaseException)):
        raise ConfigError("names neither a function nor a class that builds something")
    if plugin is not None and plugin_of(f"{defined.__module__}.{target.rpartition('.')[2]}", [plugin]) is None:
        raise ConfigError(f"is defined in {defined.__module__}, which is not of {plugin}: name it where it is defined")
    try:
        inspect.signature(found), annotations_of(found)
    except Exception as error:  # annotations are evaluated
        raise ConfigError(f"has arguments that cannot be read ({error})") from error
    return cast(Callable[..., Any], found)
