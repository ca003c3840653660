"""What a key of the configuration has an effect on, written into its annotation: ``Annotated[bool, Affects.NOTHING]``.

The FP stage's key, a run's hash and the tables' lines ask here, and nowhere else.
"""

from __future__ import annotations

from enum import Enum, auto


class Affects(Enum):
    """What a key that differs makes different.

    FP       the FP net, and with it all that follows: what holds where nothing is said
    QAT      all that follows the FP net
    TESTS    which sets are measured at the end, and no net
    PLACE    nothing in itself: where something lies that is known by what it is
    NOTHING  how a run is carried out, what it says
    """

    FP = auto()
    QAT = auto()
    TESTS = auto()
    PLACE = auto()
    NOTHING = auto()


# Arguments of ``load`` functions, which tables have to know without importing torch; all others make other images.
OF_DATA = {
    **dict.fromkeys(("download", "workers", "cache_mib", "max_pixels", "disk_cache"), Affects.NOTHING),
    **dict.fromkeys(("root", "train", "train_lr", "val", "val_lr"), Affects.PLACE),
    **dict.fromkeys(("test", "test_lr"), Affects.TESTS),
}
# Data that is the same images wherever it lies; of all other the folder is what says which images those are.
NAMED_DATA = ("repq_cli.data.torchvision_sets.", "repq_cli.data.imagenet.", "repq_cli.data.digits.")
