"""Which files of a folder are read: links, loops, what is passed over, and everything that is said of it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from repq_cli.data import image_folder, imagenet, sr_folder
from repq_cli.data.image_folder import list_images
from repq_cli.data.pictures import Upscaling
from repq_cli.errors import DataError
from repq_cli.images.listing import list_folder


def write(path: str, size: int = 8) -> Path:
    """A picture that no other file shows."""
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(list(path.encode())).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file


def link(name: str, target: str) -> None:
    """A link that leads to ``target``, seen from here."""
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).symlink_to(os.path.relpath(target, Path(name).parent))


def said(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records)


def test_links_are_followed_once_and_loops_end(in_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The usual DF2K: a folder of links to other folders; here with a loop, a second way, and a link to a file."""
    for name in ("div2k/a.png", "div2k/deep/b.JPG", "flickr2k/c.png", "df2k/own.png", "df2k/z/real.png"):
        write(name)
    link("df2k/div2k", "div2k")
    link("df2k/flickr", "flickr2k")
    link("df2k/again", "div2k/deep")
    link("div2k/deep/loop", "df2k")
    link("df2k/a_first.png", "df2k/z/real.png")
    link("df2k/y", "df2k/z")
    expected = ["again/b.JPG", "div2k/a.png", "flickr/c.png", "own.png", "z/real.png"]
    assert [path.relative_to("df2k").as_posix() for path in list_folder(Path("df2k"))] == expected
    assert "images that are further links to others count once: df2k/a_first.png" in said(caplog)
    link("whole", "df2k")
    assert len(list_folder(Path("whole"))) == 5


def test_every_reader_follows_links(in_folder: Path) -> None:
    for name in ("cat", "dog"):
        for index in range(3):
            write(f"elsewhere/{name}/{index}.png")
            write(f"more/{name}/nested/{index}.png")
    for split in ("train", "val"):
        link(f"root/{split}/dog", "elsewhere/dog")
        link(f"root/{split}/cat/here", "elsewhere/cat")
    link("root/train/cat/too", "more/cat")
    data = image_folder.load("root", val_fraction=0.2)
    assert data.info.classes == ("cat", "dog") and len(data.train) + len(data.val) == 9
    assert len(data.tests["test"]) == 6
    assert len(imagenet.load("root", size=8, resize=8, workers=0).tests["test"]) == 6
    for index in range(3):
        write(f"pictures/{index}.png", 40)
        write(f"own/{index}x.png", 40)
    link("own/linked", "pictures")
    upscaling = Upscaling(2, "luma")
    trained = sr_folder.load(upscaling, "own", val="own", test={"t": "own"}, patch=16, patches=8)
    assert len(trained.train) == len(trained.val) == len(trained.tests["t"]) == 6


def test_a_photograph_of_two_folders_trains_once(in_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Or what is held out of one folder would be trained on from the other."""
    for index in range(4):
        write(f"one/{index}.png", 40)
    link("two/linked", "one")
    upscaling = Upscaling(2, "luma")
    data = sr_folder.load(upscaling, ["one", "two"], val_images=1, test={"t": "one"}, patch=16, patches=8)
    assert (len(data.train), len(data.val)) == (3, 1)
    assert "Pictures that are in two folders of data.train count once: two/linked/0.png" in said(caplog)


def test_links_that_lead_nowhere_are_named(in_folder: Path) -> None:
    write("root/train/cat/0.png")
    write("root/train/dog/0.png")
    write("root/val/cat/0.png")
    write("root/val/dog/0.png")
    for name, listing in (
        ("root/train/cat/lost.png", lambda: list_folder(Path("root/train"))),
        ("root/train/lost", lambda: image_folder.load("root")),
        ("root/train/dog/lost.png", lambda: imagenet.load("root", size=8, resize=8)),
        ("root/test", lambda: image_folder.load("root")),
    ):
        Path(name).symlink_to("gone")
        with pytest.raises(DataError, match=rf"^{name} is a link to gone, which is not there: mend or remove it\."):
            listing()
        Path(name).unlink()
    Path("root/train/self").symlink_to("self")
    with pytest.raises(DataError, match="self is a link to self, which is not there"):
        list_folder(Path("root"))


def test_folders_that_may_not_be_read_are_named(in_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("root/a/0.png")
    scan = os.scandir

    def refusing(folder: Path) -> object:
        if Path(folder).name == "a":
            raise PermissionError(13, "Permission denied")
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(DataError, match=r"^root/a cannot be read: Permission denied\."):
        list_folder(Path("root"))


def test_what_is_passed_over_is_said(in_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for ending in ("png", "JPG", "Jfif", "avif", "TIFF", "heic", "HEIC", "txt"):
        write(f"all/0.{ending}")
    for hidden in ("all/.hidden.png", "all/.thumbs/1.png"):
        write(hidden)
    write("all/folder.png/inside.png")
    os.mkfifo("all/pipe.png")
    found = {path.name for path in list_folder(Path("all"))}
    assert found == {"0.png", "0.JPG", "0.Jfif", "0.avif", "0.TIFF", "inside.png"}
    assert "Below all, files of other endings than those of images are passed over: 2 of .heic, 1 of .txt." in said(
        caplog
    )
    write("none/a.heic")
    with pytest.raises(DataError, match=r"^none holds no images, but other files \(1 of \.heic\): name a folder"):
        list_folder(Path("none"))


def test_images_without_a_class_and_folders_that_are_not_read_are_named(
    in_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for split in ("train", "val", "test", "validation"):
        for name in ("cat/0", "cat/deep/1", "dog/0", "dog/.cache/2"):
            write(f"root/{split}/{name}.png")
    for name in ("root/train/alone.png", "root/train/.hidden.png", "root/val/dog/labels.csv"):
        write(name)
    data = image_folder.load("root")
    assert [len(part) for part in (data.train, data.val, data.tests["test"])] == [3, 3, 3]
    assert said(caplog).splitlines() == [
        "data.root=root holds further folders, which are not read: validation.",
        "Images of root/train that lie in no class folder are left out: alone.png.",
        "Below root/val, files of other endings than those of images are passed over: 1 of .csv.",
    ]
    write("flat/train/0.png")
    Path("flat/val").mkdir()
    with pytest.raises(DataError, match=r"has 0, beside images that lie in none \(0\.png\)\."):
        image_folder.load("flat")
    for part in ("train", "val"):
        write(f"notes/{part}/cat/0.png")
        write(f"notes/{part}/dog/0.heic")
    with pytest.raises(DataError, match=r"train/dog has no images, but other files \(1 of \.heic\): add some"):
        image_folder.load("notes")


def test_one_file_has_one_class(in_folder: Path) -> None:
    write("train/cat/0.png")
    link("train/dog/0.png", "train/cat/0.png")
    with pytest.raises(DataError, match=r"train/cat/0\.png is in two classes, 'cat' and 'dog', by links: remove one\."):
        list_images(Path("train"), ("cat", "dog"))
