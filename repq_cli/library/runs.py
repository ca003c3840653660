"""``repq.run``: one experiment, carried out as the command line would."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from repq_cli.cli.command_line import CommandLine
from repq_cli.cli.folders import run_dir
from repq_cli.cli.jobs import train
from repq_cli.cli.overrides import Checker
from repq_cli.errors import ConfigError
from repq_cli.library.given import typed
from repq_cli.runs.folder import RunFolder
from repq_cli.runs.row import Row

PLACE = "hydra.run.dir="


@typed
def run(overrides: Sequence[str]) -> Row:
    """``repq train`` with these overrides: ``["+model=repvgg_a0", "quant=w4a4", "hydra.run.dir=DIR"]``.

    Returns the row, as it stands in the run folder's ``summary.json``. Raises ConfigError, DataError and CheckError
    where the command line would end with 2, 3 and 4.
    """
    line = CommandLine.parse(list(overrides))
    places = [override.removeprefix(PLACE) for override in line.overrides if override.startswith(PLACE)]
    line.overrides = [override for override in line.overrides if not override.startswith(PLACE)]
    foreign = [text for text in line.overrides if text.lstrip("+").startswith(("hydra", "resume="))]
    if line.flags or foreign:
        raise ConfigError(
            f"repq.run carries out one new run, and {' '.join([*line.flags, *foreign])} asks for something else: "
            f"use the command repq train."
        )
    checker = Checker("train", line)
    checker.check()
    config = checker.composed[0].config
    quant, rep = config.quant, config.rep
    given = config.model.name, rep.name, rep.batch_norm, config.mode.name, quant.weight_bits, quant.act_bits
    folder = RunFolder(places[-1] if places else run_dir(*given))
    train(config, folder, command_line=f"repq train {shlex.join(overrides)}")
    row = folder.read_row()
    assert row is not None
    return row
