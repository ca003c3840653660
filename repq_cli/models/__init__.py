"""Networks of blocks; ``repq.models.NAME(…)`` makes the one of ``configs/model/NAME.yaml``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def __getattr__(name: str) -> Callable[..., Any]:
    if name.startswith("__"):
        raise AttributeError(name)
    from repq_cli.library.networks import named  # the one place here that knows configurations

    return named(name)


def __dir__() -> list[str]:
    from repq_cli.library.networks import names

    return names("model")
