"""The ``repq`` command. Help and completion do not import torch."""

from repq_cli.cli.commands import COMMANDS
from repq_cli.cli.dispatch import main

__all__ = ["COMMANDS", "main"]
