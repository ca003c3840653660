"""What a data set consists of, image by image, and in what two of them differ. Needs no torch.

A run keeps it in a file: names, hashes of contents and labels, some 15 bytes an image.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from repq_cli.data.contents import content_hash
from repq_cli.errors import DataError
from repq_cli.files import LARGEST, parsed_json, read_regular, write_atomically
from repq_cli.images.members import Member
from repq_cli.sealed import seal, without_seal

NAMED = 3  # images that a message names
TRAINING = ("train", "val")


class Listing(NamedTuple):
    """The images of a split in order: names (or none), hashes of what they hold, labels (or none)."""

    names: list[str]
    contents: list[str]
    labels: list[int]


@runtime_checkable
class Listed(Protocol):
    """A split that tells what it consists of."""

    def listing(self) -> Listing | None:
        """None where what it reads does not tell."""
        ...


def names_of(paths: Sequence[Path | Member]) -> list[str]:
    """The paths without the folder that they have in common, so that a tree may move."""
    if not paths:
        return []
    both = zip(paths[0].parent.parts, paths[-1].parent.parts, strict=False)
    common = [part for part, _ in takewhile(lambda pair: pair[0] == pair[1], both)]
    top = os.path.join("", *common, "")
    return [str(path).removeprefix(top) for path in paths]


@dataclass(frozen=True)
class Identity:
    """The splits ``train``, ``val`` and ``test/NAME``; None for one that does not tell what it consists of.

    stated: what the data set says of itself beside. changed: what had changed when a run went on all the same.
    """

    splits: dict[str, Listing | None]
    stated: str = ""
    changed: list[str] = field(default_factory=list)

    @property
    def training(self) -> str | None:
        """A hash of all that a network is trained and validated on; None where not all of that is known.

        Names are no part of it: what they decide, the order and the label, is.
        """
        return self._hash(TRAINING)

    @property
    def whole(self) -> str | None:
        """The same of all splits."""
        return self._hash(tuple(self.splits))

    def _hash(self, names: tuple[str, ...]) -> str | None:
        parts = [self.splits[name] for name in names]
        if not self.stated and None in parts:
            return None
        return content_hash(json.dumps([self.stated, *map(_substance, names, parts)]).encode())

    def select(self, names: Iterable[str]) -> Identity:
        """Some of the splits alone."""
        return Identity({name: self.splits[name] for name in names if name in self.splits})

    def save(self, path: Path) -> None:
        """Write it as compressed JSON."""
        splits = {name: part and part._asdict() for name, part in self.splits.items()}
        content = {"splits": splits, "stated": self.stated, "changed": self.changed}
        packed = gzip.compress(json.dumps(content).encode(), 3, mtime=0)
        write_atomically(path, packed, seal(packed))

    @classmethod
    def load(cls, path: Path) -> Identity | None:
        """Read it; None where there is none, DataError if it is damaged."""
        try:
            content = parsed_json(_unpacked(without_seal(read_regular(path))))
            splits = {name: part and Listing(**part) for name, part in content["splits"].items()}
            return cls(splits, content["stated"], content["changed"])
        except FileNotFoundError:
            return None
        except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is damaged ({error}): restore it, or remove it and go on unchecked.") from error

    def changes_since(self, old: Identity) -> list[str]:
        """In what this differs from ``old``, each kind of change in a phrase with a count and the first few names.

        A split that one of both does not know is not compared.
        """
        names = dict.fromkeys([*old.splits, *self.splits])
        unknown = {name for splits in (old.splits, self.splits) for name, part in splits.items() if part is None}
        common = [name for name in names if name not in unknown]
        before, after = old.select(common).splits, self.select(common).splits
        found = []
        if any(_substance(name, before.get(name)) != _substance(name, after.get(name)) for name in common):
            found = _changes(_images(before), _images(after)) or ["the order of the training images"]
        if old.stated != self.stated:
            found.append(f"what the data set states of itself ({old.stated or 'nothing'} before)")
        return found


def _unpacked(content: bytes) -> bytes:
    """What is compressed, up to a size that no data set of ours comes near: the rest would fill the memory."""
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
        unpacked = file.read(4 * LARGEST)
        if file.read(1):
            raise ValueError("it is larger than any that repq writes")
    return unpacked


def _substance(split: str, part: Listing | None) -> list[Any] | None:
    """Contents and labels; their order only where it says in which order a network is trained."""
    if part is None or split == "train":
        return part and [part.contents, part.labels]
    return sorted(zip(part.contents, part.labels, strict=True)) if part.labels else sorted(part.contents)


class _Image(NamedTuple):
    split: str
    name: str
    content: str
    label: int | None
    position: int

    def __str__(self) -> str:
        return f"{self.split}: {self.name or f'number {self.position}'}"


def _images(splits: dict[str, Listing | None]) -> list[_Image]:
    found = []
    for split, part in splits.items():
        assert part is not None
        count = len(part.contents)
        names = part.names or [""] * count
        labels: Sequence[int | None] = part.labels or [None] * count
        found += [
            _Image(split, *image, position)
            for position, image in enumerate(zip(names, part.contents, labels, strict=True))
        ]
    return found


def _changes(old: list[_Image], new: list[_Image]) -> list[str]:
    """The kinds of changes: images are the same by name within their split, else by content anywhere."""
    kinds: dict[str, list[str]] = {
        kind: []
        for kind in ("removed", "added", "changed", "with another label", "moved between the splits", "renamed")
    }
    removed, added = _without(old, new), _without(new, old)
    for same in (lambda image: image.name and (image.split, image.name), lambda image: image.content):
        pairs, removed, added = _paired(removed, added, same)
        for before, after in pairs:
            kind, text = _kind(before, after)
            kinds[kind].append(text)
    kinds["removed"], kinds["added"] = [str(image) for image in removed], [str(image) for image in added]
    return [f"{len(found)} {kind} ({_some(found)})" for kind, found in kinds.items() if found]


def _kind(before: _Image, after: _Image) -> tuple[str, str]:
    if before.content != after.content:
        return "changed", str(after)
    if before.split != after.split:
        return "moved between the splits", f"{before.name or str(before)} from {before.split} to {after.split}"
    if before.label != after.label:
        return "with another label", f"{after}, {before.label} before and {after.label} now"
    return "renamed", f"{before} to {after.name}"


def _without(images: list[_Image], others: list[_Image]) -> list[_Image]:
    """``images`` less those that ``others`` has exactly so, wherever in the order."""
    left = Counter(image[:4] for image in others)
    found = []
    for image in images:
        if left[image[:4]] > 0:
            left[image[:4]] -= 1
        else:
            found.append(image)
    return found


def _paired(
    old: list[_Image], new: list[_Image], key: Callable[[_Image], Any]
) -> tuple[list[tuple[_Image, _Image]], list[_Image], list[_Image]]:
    """Images of both with one key, where they have any; and those of each that have no partner."""
    waiting: dict[Any, list[_Image]] = defaultdict(list)
    for image in reversed(old):
        if key(image):
            waiting[key(image)].append(image)
    pairs, alone = [], []
    for image in new:
        partners = waiting.get(key(image))
        if partners:
            pairs.append((partners.pop(), image))
        else:
            alone.append(image)
    taken = {id(before) for before, _ in pairs}
    return pairs, [image for image in old if id(image) not in taken], alone


def _some(names: list[str]) -> str:
    more = len(names) - NAMED
    listed = "; ".join(names[:NAMED]).encode(errors="backslashreplace").decode()  # names need not be text
    return listed + (f"; and {more} more" if more > 0 else "")
