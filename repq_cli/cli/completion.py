"""Tab completion: Hydra's own, for the arguments behind the command word; the command word itself by us.

The shell calls ``repq -sc query=bash`` with the whole line in COMP_LINE, so the command word is taken out of the line
and the rest handed to that command's Hydra app.
"""

from __future__ import annotations

import os

from repq_cli.cli import COMMANDS
from repq_cli.cli.hydra_app import run_app


def complete(arguments: list[str]) -> int:
    """Answer ``-sc install=SHELL``, ``-sc uninstall=SHELL`` and ``-sc query=SHELL``."""
    line = os.environ.get("COMP_LINE", "")
    words = line.split(" ")
    if len(words) <= 1 or not any(argument.startswith("query") for argument in arguments):
        return run_app("train", arguments)
    program, command = words[0], words[1]
    if len(words) == 2:  # the cursor is still on the command word
        print(" ".join(name for name in COMMANDS if name.startswith(command)))
        return 0
    if command not in COMMANDS or not COMMANDS[command].overrides:
        return 0  # the shell completes paths by itself
    shortened = " ".join([program, *words[2:]])
    removed = len(line) - len(shortened)
    os.environ["COMP_LINE"] = shortened
    os.environ["COMP_POINT"] = str(int(os.environ.get("COMP_POINT", len(line))) - removed)
    return run_app(command, arguments)
