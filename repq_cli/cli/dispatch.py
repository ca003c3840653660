"""From the words behind ``repq`` to a command, and from what goes wrong in it to a sentence and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from repq_cli import __version__
from repq_cli.cli.commands import COMMANDS
from repq_cli.cli.output import guarded_output
from repq_cli.cli.terminal import complaint, shown_output
from repq_cli.errors import ConfigError, DataError, Interrupted, RepqError, is_out_of_memory
from repq_cli.neighbours import wait_briefly
from repq_cli.ranks import place
from repq_cli.text import columns, fitted
from repq_cli.train.interrupt import interruptible
from repq_cli.typecheck import nearest

HELP = ("-h", "--help", "help")
USAGE = """\
repq trains re-parameterised convolutional networks so that they ship as low-bit integers.

usage: repq COMMAND [key=value | group=option] ...
       repq --help | --version | COMMAND --help

commands:
{commands}

try:
  repq train +model=repvgg_a0 quant=w4a4    minutes on two cores, no download
  repq train -m +model=repvgg_a0 mode=merged,repq_bnest quant=w4a4,w2a2
  repq info +model=repvgg_b0 quant=w4a4
  repq table                                all runs below outputs/, seeds averaged
  repq report                               the same as a page, with figures

exit codes: 0 done, 1 the run failed, 2 usage or configuration,
            3 data or files, 4 a check failed,
            130 Ctrl-C and 143 SIGTERM, both after a checkpoint\
"""


def usage() -> str:
    """What ``repq --help`` prints."""
    return USAGE.format(commands=columns([(f"  {name}", command.summary) for name, command in COMMANDS.items()], 2))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``repq`` and return its exit code."""
    wait_briefly()  # here, where nothing has imported torch yet
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    spared = bool(arguments) and arguments[0] in COMMANDS and COMMANDS[arguments[0]].leaves_files
    try:
        with guarded_output(spared), shown_output():
            return _carried_out(arguments)
    except RepqError as error:  # of output that is flushed at the end
        return complain(error, error.exit_code)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        return 0


def _carried_out(arguments: list[str]) -> int:
    try:
        with interruptible():
            return dispatch(arguments)
    except RepqError as error:
        return complain(error, error.exit_code)
    except KeyboardInterrupt as interruption:
        if not (isinstance(interruption, Interrupted) and interruption.told):
            print("repq: stopped; files that were written are whole.", file=sys.stderr)
        return interruption.exit_code if isinstance(interruption, Interrupted) else 130
    except BrokenPipeError:  # the reader, such as head, has seen enough
        return 0
    except Exception as error:
        said = in_words(error)
        return complain(said, said.exit_code if isinstance(said, RepqError) else 1)


def in_words(error: Exception) -> Exception:
    """What libraries raise where the machine or its files, not the program, is at fault, as a sentence; else itself."""
    sentence: RepqError
    if is_out_of_memory(error):
        sentence = RepqError(
            "Memory ran out: take smaller batches, images or tiles (repq COMMAND --help lists the keys), or free some."
        )
    elif isinstance(error, OSError) and error.errno is not None:
        what = "A file" if error.filename is None else str(error.filename)
        sentence = DataError(f"{what} cannot be used ({error.strerror}): name another one, or mend it.")
    else:
        return error
    sentence.__cause__ = error
    return sentence


def complain(error: Exception, exit_code: int) -> int:
    """Print an error: a sentence, with a traceback only on request or where the mistake is ours."""
    if os.environ.get("HYDRA_FULL_ERROR") == "1" or not isinstance(error, RepqError):
        import traceback

        traceback.print_exception(error)
    else:
        complaint(str(error))
    return exit_code


def dispatch(arguments: list[str]) -> int:
    """Find the command and hand it its arguments."""
    if arguments[:1] in (["-sc"], ["--shell-completion"]):
        from repq_cli.cli.completion import complete

        return complete(arguments)
    if arguments[:1] and arguments[0] in HELP and arguments[1:] and arguments[1] in COMMANDS:
        return COMMANDS[arguments[1]].run(arguments[1], ["--help"])
    if not arguments or arguments[0] in HELP:
        stream = sys.stdout if arguments else sys.stderr
        print(fitted(usage(), stream), file=stream)
        return 0 if arguments else ConfigError.exit_code
    if arguments[0] in ("-V", "--version"):
        print(f"repq {__version__}")
        return 0
    name, rest = arguments[0], arguments[1:]
    if rest == ["help"]:
        rest = ["--help"]
    if name not in COMMANDS:
        near = nearest(name, COMMANDS)
        hint = f"did you mean '{near}'?" if near else f"the commands are {', '.join(COMMANDS)}."
        raise ConfigError(f"There is no command '{name}'; {hint}")
    where = place()
    if where is not None and where.size > 1 and name != "train":
        if where.rank > 0:
            return ConfigError.exit_code  # rank 0 says it
        raise ConfigError(f"torchrun starts repq {name} {where.size} times: it is for repq train; leave it out.")
    return COMMANDS[name].run(name, rest)
