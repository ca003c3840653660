"""Settings that a shell has torn into several words, since they have spaces and no quotes."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from repq_cli.errors import ConfigError
from repq_cli.text import shortened

PAIRS = (("[", "]"), ("{", "}"), ("(", ")"))


def require_whole(words: Sequence[str]) -> None:
    """Raise ConfigError for the first such setting, with how it is to be written.

    >>> require_whole(["+model=resnet18", "fp.lr=0.1"])
    """
    for index, word in enumerate(words):
        behind = words[index + 1] if index + 1 < len(words) else ""
        if word.startswith("="):
            before = words[index - 1] if index and "=" not in words[index - 1] else "KEY"
            meant = f"{before}={word[1:] or behind or 'VALUE'}"
        elif word.endswith("=") and behind and "=" not in behind and not behind.startswith(("-", "~")):
            meant = f"{word}{behind}"
        elif "=" in word and (joined := _until_closed(words[index:])) is not None:
            meant = joined
        else:
            continue
        raise ConfigError(f"Spaces tear a setting apart: write it as one word, {shortened(shlex.quote(meant))}.")


def _until_closed(words: Sequence[str]) -> str | None:
    """The first word with those behind it that its open brackets take in; None where it has none, or they never end."""
    text = ""
    for number, word in enumerate(words):
        if number and "=" in word:
            return None
        text += word
        if all(text.count(left) <= text.count(right) for left, right in PAIRS):
            return text if number else None
    return None
