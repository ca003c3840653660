"""A run that goes on to more epochs, or with another patience, than it was begun with: whether it may, and as what."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from repq_cli.config import Config
from repq_cli.errors import ConfigError
from repq_cli.runs.folder import RunFolder
from repq_cli.train.checkpoint import load_last
from repq_cli.train.log import logger
from repq_cli.train.optim import learning_rate
from repq_cli.train.options import StageOptions

STAGES = ("fp", "qat")


@dataclass(frozen=True)
class Extension:
    """What is changed of a run. ``notes``: for its row; ``sentences``: what that means for the schedule."""

    config: Config
    notes: list[dict[str, Any]]
    sentences: list[str]

    def begin(self, folder: RunFolder) -> None:
        """Note it in the folder. A row of the shorter run counts as interrupted until the longer one is done.

        The configuration comes last: whoever is stopped before that has the shorter run, and may extend it again.
        """
        row = folder.readable_row()
        if row.get("status") == "done":
            folder.write_row(row | {"status": "interrupted", "error": "it goes on to more epochs"})
        env = folder.read_env()
        if env is not None:
            folder.write_env(env | {"extended": [*env.get("extended", []), *self.notes]})
        folder.write_config(self.config.stored())
        for sentence in self.sentences:
            logger.info("%s", sentence)


def extension(folder: RunFolder, before: Config, after: Config) -> Extension | None:
    """What a change of epochs or patience means for the run in ``folder``; None where nothing changes.

    Raises ConfigError, in a sentence, where the run cannot go on so.
    """
    if before == after:
        return None
    saved = load_last(folder)
    notes, sentences = [], []
    for stage in STAGES:
        old, new = getattr(before, stage), getattr(after, stage)
        if (old.epochs, old.patience) == (new.epochs, new.patience):
            continue
        refusal = next(_refusals(folder, stage, before, after, saved), None)
        if refusal is not None:
            raise ConfigError(f"{refusal}.")
        begun = epochs_begun(saved, stage)
        exact = begun == 0 or _is_exact(stage, after, old)
        notes.append({"stage": stage, "after": begun, "from": old.epochs, "to": new.epochs, "exact": exact})
        if old.epochs != new.epochs:
            sentences.append(_meaning(stage, after, old, new, begun, exact))
    return Extension(after, notes, sentences)


def epochs_begun(saved: dict[str, Any] | None, stage: str) -> int:
    """How many epochs of a stage a checkpoint has, the one that was stopped included."""
    if saved is None or saved["stage"] != stage:
        return 0
    return int(saved["epoch"]) + (saved["totals"]["steps"] > 0)


def _refusals(
    folder: RunFolder, stage: str, before: Config, after: Config, saved: dict[str, Any] | None
) -> Iterator[str]:
    old, new = getattr(before, stage), getattr(after, stage)
    key = f"{stage}.epochs={new.epochs}"
    if stage == "fp" and after.fp.checkpoint is not None:
        yield f"{key} has no meaning for {folder}: its FP net came from {after.fp.checkpoint}"
    if stage == "fp" and saved is not None and saved["stage"] == "qat":
        yield (
            f"{key} comes too late for {folder}: its QAT began from the FP net of {old.epochs} epochs; start a new run "
            f"with {key}"
        )
    if stage == "qat" and not after.mode.rule.trains:
        yield f"{key} has no meaning for {folder}: mode={after.mode.name} trains nothing after FP"
    begun = epochs_begun(saved, stage)
    if new.epochs < begun:
        yield (
            f"{key} is less than {folder} has trained: name {begun} to end there, or more; fewer epochs are a new run"
        )
    better = saved.get("better_epoch", saved["best_epoch"]) if saved is not None else 0
    if saved is not None and begun and new.epochs > begun and new.has_waited_enough(saved["epoch"], better):
        yield (
            f"{key} changes nothing: the validation score of {folder} has not improved for "
            f"{saved['epoch'] - 1 - better} epochs, and {stage}.patience={new.patience}; set that to null, or to more"
        )


def _is_exact(stage: str, config: Config, old: StageOptions) -> bool:
    """Whether the epochs so far are those of a run that had the new number from the start."""
    warmed = config.schedule.warmup_epochs <= old.epochs
    by_share = stage == "qat" and config.qat.freeze_steps_at is not None
    return config.schedule.name == "constant" and warmed and not by_share


def _meaning(stage: str, config: Config, old: StageOptions, new: StageOptions, begun: int, exact: bool) -> str:
    """What becomes of the learning rate."""
    name = stage.upper()
    if exact:
        return f"{name} goes on after epoch {begun} to {new.epochs}: exactly a run of {new.epochs} epochs."
    rates = (
        learning_rate(config.schedule, options.lr, min(begun, options.epochs) * STEPS, options.epochs * STEPS, STEPS)
        for options in (old, new)
    )
    last, first = (f"{rate:.3g}" for rate in rates)
    return (
        f"{name} goes on after epoch {begun} to {new.epochs}: schedule={config.schedule.name} is drawn over "
        f"{new.epochs} epochs from here on, so that the rate goes from {last} to {first}. A run that has {new.epochs} "
        f"epochs from the start is another; the row says so (lineage.extended)."
    )


STEPS = 1000  # of an epoch, for a rate to be told
