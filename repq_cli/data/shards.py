"""Images in shards as WebDataset writes them: tar archives with ``KEY.jpg`` and, beside it, its label ``KEY.cls``.

An archive is looked through once, for where its files lie; after that every image is read by itself. So the order of
training is the seed's, over all shards, as that of class folders is.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from repq_cli.errors import DataError
from repq_cli.files import open_regular
from repq_cli.images.few import few
from repq_cli.images.listing import EXTENSIONS, entries
from repq_cli.images.members import Member, members

LABEL = ".cls"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4")
LONGEST = 20  # bytes of a label
MOST = 1_000_000  # classes

Labelled = list[tuple[Path | Member, int]]


def shards(folder: Path) -> list[Path]:
    """The archives in a folder, in order; none beside class folders, which may have come out of them.

    Raises DataError for compressed ones.
    """
    found = entries(folder) if folder.is_dir() else []
    if any(entry.is_dir() for entry in found):
        return []
    files = [Path(entry.path) for entry in found]
    for path in files:
        if path.name.lower().endswith(COMPRESSED):
            raise DataError(f"The archive {path} is compressed, so that no image can be read alone: decompress it.")
    return [path for path in files if path.suffix.lower() == ".tar"]


def list_shards(folders: Sequence[Path], least: int) -> tuple[tuple[str, ...], list[Labelled]]:
    """The classes, which are numbers, and the images of each folder's shards with their labels, in order.

    Raises DataError for classes of which the first folder has no image, and for fewer than ``least``.
    """
    found = [_labelled(folder) for folder in folders]
    first = {label for _, label in found[0]}
    count = max(first, default=-1) + 1
    lacking = next((label for label in range(count) if label not in first), None) if least > 1 else None
    if lacking is not None:
        raise DataError(f"The shards of {folders[0]} have labels up to {count - 1}, and no image of class {lacking}.")
    if count < least:
        raise DataError(f"The shards of {folders[0]} need at least {least} classes, and have {count}.")
    for folder, images in zip(folders[1:], found[1:], strict=True):
        stranger = next(((image, label) for image, label in images if label >= count), None)
        if stranger is not None:
            raise DataError(f"{stranger[0]} is of class {stranger[1]}, and those of {folders[0]} are 0 to {count - 1}.")
        if not images:
            raise DataError(f"{folder} has no shards with images (*.tar).")
    return tuple(map(str, range(count))), [_few_of_each(images) for images in found]


def _labelled(folder: Path) -> Labelled:
    found: Labelled = [sample for path in shards(folder) for sample in _samples(path)]
    again = next((name for name, times in Counter(str(image) for image, _ in found).items() if times > 1), None)
    if again is not None:
        raise DataError(f"{again} is in its archive twice: write each file once.")
    return found


def _samples(shard: Path) -> Iterator[tuple[Member, int]]:
    """Each image with its label. Raises DataError for a sample that has not one of each."""
    with open_regular(shard) as file:
        for key, parts in groupby(filter(_counts, members(shard)), _key):
            together = list(parts)
            images = [part for part in together if part.name.lower().endswith(EXTENSIONS)]
            labels = [part for part in together if part.name.lower().endswith(LABEL)]
            if len(images) != 1 or len(labels) != 1:
                raise DataError(
                    f"{shard}/{key} has {len(images)} images and {len(labels)} labels: as WebDataset writes them, a "
                    f"sample is one image ({key}.jpg) and, beside it, the number of its class ({key}{LABEL})."
                )
            yield images[0], _label(labels[0], labels[0].read_from(file) if labels[0].size <= LONGEST else b"")


def _counts(member: Member) -> bool:
    """Whether it is of a sample, and nothing that systems and WebDataset leave beside."""
    return not member.name.rpartition("/")[2].startswith((".", "__"))


def _key(member: Member) -> str:
    """What the parts of a sample have in common: the name up to its first dot."""
    folder, _, name = member.name.rpartition("/")
    return f"{folder}/{name.partition('.')[0]}".lstrip("/")


def _label(member: Member, content: bytes) -> int:
    text = content.decode("ascii", "replace").strip()
    if not text.isdecimal() or int(text) >= MOST:
        raise DataError(f"{member} is no label: it takes the number of a class, from 0 to {MOST - 1}, in digits.")
    return int(text)


def _few_of_each(images: Labelled) -> Labelled:
    """All of them; in a trial a few of each class."""
    of_class: dict[int, list[int]] = defaultdict(list)
    for place, (_, label) in enumerate(images):
        of_class[label].append(place)
    return [images[place] for place in sorted(place for places in of_class.values() for place in few(places))]
