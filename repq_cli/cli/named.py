"""Functions by name, so that what they need is imported when they are called and not before."""

from __future__ import annotations

import importlib
from typing import Any


def found(name: str) -> Any:
    """What ``MODULE:NAME`` names.

    >>> found("math:floor")(2.5)
    2
    """
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
