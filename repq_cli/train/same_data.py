"""A run, and every run of a sweep, keeps to the data that it began with, or says that it did not."""

from __future__ import annotations

from dataclasses import replace

from repq_cli.data.identity import Identity
from repq_cli.errors import DataError
from repq_cli.runs.folder import RunFolder
from repq_cli.train.log import logger


def known_data(identity: Identity, folder: RunFolder, resume: bool, beside: RunFolder | None, accept: bool) -> Identity:
    """What a run's folder is to remember of its data: ``identity``, with all that has changed since the run began.

    It is compared with what the run itself began with, or else with that of ``beside``, a run of the same sweep.
    Raises DataError, which says what has changed, unless that is to be accepted.
    """
    for other in (folder, beside) if resume else (beside,):
        before = None if other is None else Identity.load(other.data_file)
        if before is None:
            continue
        found = identity.changes_since(before)
        if found and not accept:
            raise DataError(
                f"The data is not what {other} was started with: {', '.join(found)}. Restore it, or start anew; "
                f"runtime.changed_data=accept goes on all the same, and the row then says so."
            )
        if found:
            logger.warning("The data is not what %s was started with, which is accepted: %s.", other, ", ".join(found))
        elif identity.whole is None:
            logger.info("The data does not tell all that it consists of: whether it has changed cannot be checked.")
        return replace(identity, changed=[*(before.changed if other is folder else []), *found])
    if resume:
        logger.info("%s is not there: whether the data has changed since cannot be checked.", folder.data_file)
    return identity
