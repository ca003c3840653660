"""What is wrong with a configuration, in sentences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from repq_cli.errors import ConfigError
from repq_cli.text import shortened


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a configuration; without a value (``...``) of the key as such."""

    key: str
    value: Any
    message: str

    def __str__(self) -> str:
        value = (
            "null" if self.value is None else str(self.value).lower() if isinstance(self.value, bool) else self.value
        )
        value = "" if value is ... else "=…" if value == "???" else f"={shortened(value)}"
        said = f"{shortened(self.key)}{value} {self.message}"
        return said + ("" if self.message.endswith("?") else ".")


def error_of(problems: list[Problem]) -> ConfigError:
    """All problems as one error, to be raised."""
    unique = list(dict.fromkeys(map(str, problems)))
    if len(unique) == 1:
        return ConfigError(unique[0])
    return ConfigError("\n".join([f"{len(unique)} problems in the configuration:", *(f"  {line}" for line in unique)]))
