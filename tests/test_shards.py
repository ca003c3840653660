"""Images in tar archives are read as those in class folders are, one by one; archives of strangers do no harm."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from test_data import write_folder

from repq_cli.data import image_folder, imagenet
from repq_cli.data.base import Data
from repq_cli.data.image_folder import labelled_images
from repq_cli.errors import DataError
from repq_cli.images.few import at_most
from repq_cli.parts import Part

Entry = tuple[str, bytes]


def write_shard(path: Path, entries: Sequence[Entry | tarfile.TarInfo], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                archive.addfile(entry)
                continue
            info = tarfile.TarInfo(entry[0])
            info.size = len(entry[1])
            archive.addfile(info, io.BytesIO(entry[1]))
    return path


def sample(name: str, label: object, image: bytes = b"") -> list[Entry]:
    return [(f"{name}.png", image), (f"{name}.cls", str(label).encode())]


@pytest.fixture
def both(tmp_path: Path) -> tuple[str, str]:
    """The same images in class folders and in two shards for each part, in one order."""
    folders = write_folder(tmp_path / "folders", ("train", "val", "test"))
    for part in folders.iterdir():
        entries: list[Entry] = [("README", b"of no sample"), ("./._0.png", b"left by a desktop")]
        for label, name in enumerate(("cat", "dog")):
            for file in sorted((part / name).iterdir()):
                entries += [
                    *sample(f"{name}/{file.stem}", label, file.read_bytes()),
                    (f"{name}/{file.stem}.json", b"{}"),
                ]
        for number, some in enumerate((entries[1:23], entries[23:])):
            write_shard(tmp_path / "shards" / part.name / f"{part.name}-{number}.tar", some)
    return str(folders), str(tmp_path / "shards")


def of_imagenet(root: str, workers: int = 0, cache: bool = False) -> Data:
    return imagenet.load(root, size=8, resize=8, val_fraction=0.2, workers=workers, disk_cache=cache)


def of_folder(root: str, workers: int = 0, cache: bool = False) -> Data:
    return image_folder.load(root, cache_mib=0, workers=workers, disk_cache=cache)


@pytest.mark.parametrize("load", [of_imagenet, of_folder])
def test_shards_are_read_as_class_folders_are(
    load: Callable[..., Data], both: tuple[str, str], in_folder: Path
) -> None:
    """The same batches bit for bit: a part of them, from the middle on, by workers and from the cache on the disk."""
    of_folders, of_shards = load(both[0]), load(both[1])
    assert of_shards.identity().whole == of_folders.identity().whole
    expected = list(of_folders.train.training_batches(4, 1))
    cached = load(both[1], cache=True)
    cached.fill()
    for data in (of_shards, load(both[1], workers=2), cached):
        found = list(data.train.training_batches(4, 1, start=1))
        assert len(found) == len(expected) - 1 > 0
        for batch, other in zip(found, expected[1:], strict=True):
            assert all(map(torch.equal, batch, other))
    part = list(of_shards.train.divided(Part(1, 2)).training_batches(4, 1))  # type: ignore[attr-defined]
    assert torch.equal(part[0][0], expected[0][0][1::2])
    for name in ("train", "val"):
        with at_most(2):
            listed = labelled_images([Path(both[1], name)])[1][0]
        assert [label for _, label in listed] == [0, 0, 1, 1]


def link(name: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


GOOD = [*sample("a", 0), *sample("b", 1)]
REFUSED: dict[str, tuple[Sequence[Entry | tarfile.TarInfo], str]] = {
    "a link": ([*GOOD, link("c.png")], r"holds c\.png, which is a link or a special file"),
    "a hard link": ([*GOOD, link("c.png", tarfile.LNKTYPE)], "is a link or a special file"),
    "a device": ([link("c.png", tarfile.CHRTYPE)], "is a link or a special file"),
    "no label": ([("a.png", b"")], r"/a has 1 images and 0 labels: .* one image \(a\.jpg\) and, beside it"),
    "no image": ([("a.cls", b"0"), *sample("b", 1)], "/a has 0 images and 1 labels"),
    "apart": ([("a.png", b""), *sample("b", 1), ("a.cls", b"0")], "/a has 1 images and 0 labels"),
    "twice": ([*GOOD, *sample("a", 0)], r"/a\.png is in its archive twice"),
    "a word": (sample("a", "cat"), r"/a\.cls is no label: it takes the number of a class"),
    "less than nothing": (sample("a", -1), "is no label"),
    "a long label": (sample("a", "0" * 10_000), "is no label"),
    "a class without images": ([*sample("a", 0), *sample("b", 999_999)], "and no image of class 1"),
    "too many classes": ([*sample("a", 0), *sample("b", 10**15)], "a class, from 0 to 999999"),
    "one class": (sample("a", 0), "need at least 2 classes, and have 1"),
    "names of the system": ([("._a.png", b""), ("__meta__.cls", b"")], "have 0"),
    "nothing": ([], "need at least 2 classes, and have 0"),
}


def test_shards_that_are_not_as_they_should_be_are_refused(tmp_path: Path) -> None:
    for case, (entries, said) in REFUSED.items():
        write_shard(tmp_path / case / "0.tar", entries)
        with pytest.raises(DataError, match=said):
            labelled_images([tmp_path / case])


def test_damaged_shards_are_refused_and_names_are_only_names(tmp_path: Path) -> None:
    """At every place where one may be cut; bytes that stand for other sizes end, and leave nothing behind."""
    shard = write_shard(tmp_path / "train/0.tar", [*sample("../../up", 0), *sample("/tmp/absolute", 1)])
    names = [image.name for image, _ in labelled_images([tmp_path / "train"])[1][0]]  # type: ignore[union-attr]
    assert names == ["../../up.png", "/tmp/absolute.png"]
    whole = shard.read_bytes()
    end = 6 * 512  # of the last file: each has a header, and labels a block
    for length in [0, 100, *range(512, end + 1, 512)]:
        shard.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"0\.tar (is no tar that can be read|cannot be read)|has 1 images"):
            labelled_images([tmp_path / "train"])
    for place, value in ((124, b"\xff" * 12), (124, b"77777777777\0"), (0, b"\xff" * 512), (156, b"S"), (156, b"x")):
        for header in (0, 512):
            content = bytearray(whole)
            content[header + place : header + place + len(value)] = value
            content[header + 148 : header + 156] = b"        "
            content[header + 148 : header + 156] = b"%06o\0 " % sum(content[header : header + 512])
            shard.write_bytes(content)
            with pytest.raises(DataError):
                labelled_images([tmp_path / "train"])
    shard.unlink()
    write_shard(tmp_path / "train/0.tar.gz", GOOD, "w:gz")
    with pytest.raises(DataError, match=r"0\.tar\.gz is compressed, so that no image can be read alone"):
        labelled_images([tmp_path / "train"])


def test_shards_that_change_while_they_are_read_are_refused(tmp_path: Path) -> None:
    for part in ("train", "val"):
        write_shard(tmp_path / part / "0.tar", [*sample("a", 0), *sample("b", 1), *sample("c", 0), *sample("d", 1)])
    (images,) = labelled_images([tmp_path / "train"])[1]
    (tmp_path / "train/0.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"The image \S+train/0\.tar/d\.png is empty"):
        image_folder.Decoder(8, grey=False)(images[3][0])
    write_shard(tmp_path / "val/0.tar", [*sample("a", 0), *sample("b", 2)])
    write_shard(tmp_path / "train/0.tar", GOOD)
    with pytest.raises(DataError, match=r"val/0\.tar/b\.png is of class 2, and those of \S+train are 0 to 1"):
        labelled_images([tmp_path / "train", tmp_path / "val"])
