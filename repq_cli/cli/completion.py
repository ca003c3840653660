"""Tab completion: of the command word, then Hydra's own for apps, and flags for commands that read files.

The shell calls ``repq -sc query=bash`` with the whole line in COMP_LINE. Hydra is given that line without the command
word.
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
    line = os.environ.get("COMP_LINE", "")
    words = line.split(" ")
    asked = any(argument.startswith("query") for argument in arguments)
    if asked and len(words) == 2:  # the cursor is still on the command word
        return _show(words[1], COMMANDS)
    name = words[1] if asked and len(words) > 1 else "train"  # Hydra's scripts are of no command
    command, rest = COMMANDS.get(name), words[2:]
    if isinstance(command, App):
        from repq_cli.cli.hydra_app import show

        shortened = " ".join([*words[:1], *rest])
        os.environ["COMP_POINT"] = str(int(os.environ.get("COMP_POINT", len(line))) - len(line) + len(shortened))
        os.environ["COMP_LINE"] = shortened
        return show(name, arguments)
    return 0 if command is None else _show(rest[-1], _words(command.parser(), rest))


def _show(begun: str, words: Iterable[str]) -> int:
    print(" ".join(word for word in words if word.startswith(begun)))
    return 0


def _words(parser: ArgumentParser, given: Sequence[str]) -> list[str]:
    """Flags and words of a parser, or the values of the flag before the cursor; paths are completed by the shell."""
    found: list[str] = []
    for action in parser._actions:
        choices = action.choices or {}
        for word in given[:-1]:
            if not action.option_strings and isinstance(choices, dict) and word in choices:
                return _words(choices[word], given[given.index(word) + 1 :])
        if given[-2:-1] and given[-2] in action.option_strings and action.nargs != 0:
            return list(choices)
        found += action.option_strings or choices
    return found
