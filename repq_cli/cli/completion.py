"""Tab completion: of the command word, then keys, values and paths of apps, and flags of commands that read files.

The shell calls ``repq -sc query=bash`` with the whole line in COMP_LINE; Hydra's scripts for shells do that.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from repq_cli.cli.commands import COMMANDS, App

if TYPE_CHECKING:
    from argparse import ArgumentParser


def complete(arguments: list[str]) -> int:
    """Answer ``-sc install=SHELL``, ``-sc uninstall=SHELL`` and ``-sc query=SHELL``."""
    query = next((argument for argument in arguments if argument.startswith("query")), None)
    if query is None:  # Hydra's scripts are of no command
        from repq_cli.cli.hydra_app import show

        return show("train", arguments)
    line = os.environ.get("COMP_LINE", "")
    words = line[: int(os.environ.get("COMP_POINT") or len(line))].split(" ")
    separator = "\n" if query.endswith("fish") else " "
    print(separator.join(_offered(words)))
    return 0


def _offered(words: list[str]) -> list[str]:
    """What may stand at the end of a line."""
    if len(words) <= 2:  # the cursor is still on the command word
        return _beginning(words[-1] if len(words) == 2 else "", COMMANDS)
    command, rest = COMMANDS.get(words[1]), [word for word in words[2:-1] if word]
    if command is None:
        return []
    if isinstance(command, App):
        from repq_cli.cli.offers import offers

        return offers(words[1], rest, words[-1])
    return _beginning(words[-1], _flags(command.parser(), [*rest, words[-1]]))


def _beginning(begun: str, words: Iterable[str]) -> list[str]:
    return [word for word in words if word.startswith(begun)]


def _flags(parser: ArgumentParser, given: Sequence[str]) -> list[str]:
    """Flags and words of a parser, or the values of the flag before the cursor; paths are completed by the shell."""
    found: list[str] = []
    for action in parser._actions:
        choices = action.choices or {}
        for word in given[:-1]:
            if not action.option_strings and isinstance(choices, dict) and word in choices:
                return _flags(choices[word], given[given.index(word) + 1 :])
        if given[-2:-1] and given[-2] in action.option_strings and action.nargs != 0:
            return list(choices)
        found += action.option_strings or choices
    return found
