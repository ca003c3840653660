"""What data sets consist of: equal wherever they lie, another one as soon as anything counts that is not the same."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import random_data
from PIL import Image

from repq_cli.data import digits, image_folder, imagenet, photos, sr_folder, torchvision_sets
from repq_cli.data.base import Data, Split
from repq_cli.data.identity import Identity, Listing, names_of
from repq_cli.data.pictures import Upscaling
from repq_cli.errors import DataError

TRAIN = Listing(["cat/1", "cat/2", "dog/1", "dog/2"], ["a", "b", "c", "d"], [0, 0, 1, 1])
VAL = Listing(["cat/3", "dog/3"], ["e", "f"], [0, 1])


def identity(train: Listing = TRAIN, val: Listing | None = VAL, stated: str = "") -> Identity:
    return Identity({"train": train, "val": val, "test/test": Listing([], ["x", "y"], [0, 1])}, stated)


CHANGES: list[tuple[Identity, list[str]]] = [
    (identity(), []),
    (identity(TRAIN._replace(names=["cat/1", "cat/x", "dog/1", "dog/2"])), []),  # in the same place
    (identity(val=Listing(["dog/3", "cat/4"], ["f", "e"], [1, 0])), []),  # validation has no order
    (identity(TRAIN._replace(contents=["c", "b", "a", "d"])), ["2 changed (train: cat/1; train: dog/1)"]),
    (
        identity(TRAIN._replace(labels=[0, 1, 1, 1])),
        ["1 with another label (train: cat/2, 0 before and 1 now)"],
    ),
    (
        identity(Listing(["cat/2", "dog/1", "dog/2"], ["b", "c", "d"], [0, 1, 1])),
        ["1 removed (train: cat/1)"],
    ),
    (
        identity(Listing([*TRAIN.names, *"pqrst"], [*TRAIN.contents, *"pqrst"], [0, 0, 1, 1, *[1] * 5])),
        ["5 added (train: p; train: q; train: r; and 2 more)"],
    ),
    (
        identity(
            Listing(["cat/3", "cat/2", "dog/1", "dog/2"], ["e", "b", "c", "d"], [0, 0, 1, 1]),
            Listing(["cat/1", "dog/3"], ["a", "f"], [0, 1]),
        ),
        ["2 moved between the splits (cat/3 from val to train; cat/1 from train to val)"],
    ),
    (
        identity(Listing(["cat/2", "cat/9", "dog/1", "dog/2"], ["b", "a", "c", "d"], [0, 0, 1, 1])),
        ["1 renamed (train: cat/1 to cat/9)"],  # which moved it in the order
    ),
    (
        identity(Listing(TRAIN.names[::-1], TRAIN.contents[::-1], TRAIN.labels[::-1])),
        ["the order of the training images"],
    ),
    (identity(val=None), []),  # cannot be compared
    (
        Identity(identity().splits | {"test/test": Listing([], ["x", "z"], [0, 1])}),
        ["1 removed (test/test: number 1)", "1 added (test/test: number 1)"],
    ),
    (identity(stated="v2"), ["what the data set states of itself (nothing before)"]),
]


@pytest.mark.parametrize(("now", "changes"), CHANGES, ids=[" ".join(changes) for _, changes in CHANGES])
def test_what_has_changed_is_told_and_makes_another_fingerprint(now: Identity, changes: list[str]) -> None:
    assert now.changes_since(identity()) == changes
    if now.splits["val"] is not None:
        assert (now.training != identity().training) == any("test/" not in change for change in changes)
        assert (now.whole != identity().whole) == bool(changes)


def test_images_without_names_are_told_by_their_place() -> None:
    before, now = (Identity({"train": Listing([], list(text), [0] * len(text))}) for text in ("abc", "acd"))
    assert now.changes_since(before) == ["1 removed (train: number 1)", "1 added (train: number 2)"]


def test_it_is_kept_in_a_small_file(tmp_path: Path) -> None:
    names = [f"n{index:07d}/\udcff\n{index}.JPEG" for index in range(3000)]
    contents = [f"{(index * 0x9E3779B97F4A7C15) % 2**64:016x}" for index in range(3000)]
    kept = Identity({"train": Listing(names, contents, [0] * 3000), "val": None}, "stated", ["2 added"])
    path = tmp_path / "data.json.gz"
    kept.save(path)
    assert Identity.load(path) == kept
    assert path.stat().st_size < 20 * 3000
    assert Identity.load(tmp_path / "nowhere") is None
    for content in (b"", b"{}", path.read_bytes()[:100]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"data\.json\.gz is damaged"):
            Identity.load(path)


def test_names_leave_out_what_all_have_in_common() -> None:
    assert names_of([Path("/a/b/cat/1"), Path("/a/b/dog/x/2")]) == ["cat/1", "dog/x/2"]
    assert names_of([Path("/a/1"), Path("b/2")]) == ["/a/1", "b/2"]
    assert names_of([Path("1"), Path("2")]) == ["1", "2"] and names_of([Path("/a/1")]) == ["1"]


def test_embedded_data_and_plugins_are_known_by_what_they_hold() -> None:
    for load in (digits.load, lambda: photos.load(Upscaling(2, "luma"), patch=16)):
        assert load().identity().training == load().identity().training is not None
    first = random_data()
    images = first.train.images.images  # type: ignore[attr-defined]
    seen = {first.identity().training}
    images[3, 0, 0, 0] += 1
    seen.add(first.identity().training)
    first.train.labels[3] += 1  # type: ignore[attr-defined]
    seen.add(first.identity().training)
    assert len(seen) == 3 and None not in seen


class Own:
    """A split, or images, that do not tell what they hold."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)


def test_data_that_does_not_tell_is_known_by_what_it_states_alone() -> None:
    info, split = random_data().info, random_data().train
    assert isinstance(split, Split)
    behind = Split(image_folder.Subset(Own(split), torch.arange(20)), split.labels, split.info)  # type: ignore[arg-type]
    for unknown in (Own(split), Split(Own(split), split.labels, split.info), behind):  # type: ignore[arg-type]
        data = Data(info, unknown, split, {"test": split})  # type: ignore[arg-type]
        assert data.identity().training is None
        stated = [Data(info, unknown, split, {"test": split}, text).identity().training for text in "ab"]  # type: ignore[arg-type]
        assert None not in stated and stated[0] != stated[1]


def write(folder: Path, names: str, size: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for name in names:
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(folder / f"{name}.png")


def swap(first: Path, second: Path) -> None:
    """Contents of files, so that names, sizes and folders stay as they are."""
    contents = first.read_bytes(), second.read_bytes()
    second.write_bytes(contents[0])
    first.write_bytes(contents[1])


def repaint(path: Path) -> None:
    """Another value of one pixel."""
    with Image.open(path) as image:
        pixels = np.array(image)
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(path)


def of_folder(root: Path, **keys: Any) -> Data:
    return image_folder.load(str(root), workers=0, **keys)


def of_imagenet(root: Path) -> Data:
    return imagenet.load(str(root), size=8, resize=8, val_fraction=0.2, workers=0)


def of_mnist(root: Path) -> Data:
    """Labels and pixels of MNIST's files as torchvision reads them."""
    for name in ("train", "t10k"):
        for kind, header in (("images-idx3", (2051, 40, 28, 28)), ("labels-idx1", (2049, 40))):
            path = root / f"MNIST/raw/{name}-{kind}-ubyte"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                body = bytes(index % (10 if len(header) == 2 else 251) for index in range(np.prod(header[1:])))
                path.write_bytes(struct.pack(f">{len(header)}I", *header) + body)
    return torchvision_sets.load("MNIST", str(root))


def of_pictures(root: Path) -> Data:
    folders = {name: str(root / name) for name in ("train", "train_lr", "val", "val_lr")}
    return sr_folder.load(Upscaling(2, "luma"), **folders, test={"s": str(root / "test")}, patch=8)  # type: ignore[arg-type]


def raise_byte(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([(content[-1] + 1) % 10]))


Edit = Callable[[Path], Any]
CASES: dict[str, tuple[Callable[[Path], Data], list[Edit], list[Edit]]] = {
    "image_folder": (
        of_folder,
        [
            lambda root: swap(root / "train/cat/b.png", root / "train/dog/b.png"),
            lambda root: repaint(root / "val/cat/a.png"),
            lambda root: shutil.copy(root / "train/cat/b.png", root / "train/dog/x.png"),
            lambda root: (root / "val/dog/b.png").unlink(),
            lambda root: (root / "train/cat/b.png").rename(root / "train/dog/bb.png"),
            lambda root: (root / "train/cat/b.png").rename(root / "train/cat/z.png"),  # the order is another
        ],
        [
            lambda root: repaint(root / "test/cat/a.png"),
            lambda root: (root / "val/cat/a.png").rename(root / "val/cat/z.png"),
            lambda root: (root / "train/cat/h.png").rename(root / "train/cat/i.png"),  # in its place
        ],
    ),
    "no validation": (
        lambda root: of_folder(root / "two", val_fraction=0.4),
        [
            lambda root: swap(root / "two/train/cat/b.png", root / "two/train/dog/b.png"),
            lambda root: (root / "two/train/dog/a.png").unlink(),
        ],
        [lambda root: repaint(root / "two/test/cat/a.png")],
    ),
    "imagenet": (
        of_imagenet,
        [
            lambda root: swap(root / "train/cat/b.png", root / "train/dog/b.png"),
            lambda root: (root / "train/dog/a.png").unlink(),
        ],
        [lambda root: repaint(root / "val/cat/a.png")],
    ),
    "mnist": (
        of_mnist,
        [
            lambda root: raise_byte(root / "MNIST/raw/train-images-idx3-ubyte"),
            lambda root: raise_byte(root / "MNIST/raw/train-labels-idx1-ubyte"),
        ],
        [lambda root: raise_byte(root / "MNIST/raw/t10k-labels-idx1-ubyte")],
    ),
    "sr_folder": (
        lambda root: of_pictures(root / "sr"),
        [lambda root, name=name: repaint(root / f"sr/{name}/a.png") for name in ("train", "train_lr", "val", "val_lr")],
        [lambda root: repaint(root / "sr/test/a.png")],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_contents_labels_and_splits_count_and_nothing_else(case: str, tmp_path: Path) -> None:
    load, what_counts, what_does_not = CASES[case]
    original = tmp_path / "original"
    for seed, part in enumerate(("train", "val", "test", "two/train", "two/test")):
        for label, name in enumerate(("cat", "dog")):
            write(original / part / name, "abcdefgh", (10, 10), 2 * seed + label)
    for seed, (name, size) in enumerate({"train": 40, "train_lr": 20, "val": 40, "val_lr": 20, "test": 40}.items()):
        write(original / "sr" / name, "abc", (size, size), seed)
    expected = load(original).identity()
    assert expected.training is not None and None not in expected.splits.values()
    for number, edit in enumerate([lambda root: None, *what_does_not, *what_counts]):
        moved = tmp_path / str(number)
        shutil.copytree(original, moved)
        edit(moved)
        found = load(moved).identity()
        assert (found.training == expected.training) == (number <= len(what_does_not)), number
        if number == 0 or number > len(what_does_not):
            assert bool(found.changes_since(expected)) == (number > 0)


def test_how_a_folder_is_read_does_not_count(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        for label, name in enumerate(("cat", "dog")):
            write(tmp_path / part / name, "abcd", (10, 10), label)
    assert of_folder(tmp_path, cache_mib=0).identity() == of_folder(tmp_path).identity()
