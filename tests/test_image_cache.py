"""Decoded images that are kept: the bits that decoding gives, whole or not there, shared, and pruned."""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import TINY
from test_data import small_imagenet, write_folder
from torch import Tensor

from repq_cli import build
from repq_cli.cli import main
from repq_cli.cli.jobs import compose_plain
from repq_cli.data import decoded, image_cache, image_folder, imagenet
from repq_cli.data.base import Data
from repq_cli.data.image_cache import stored
from repq_cli.errors import DataError


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch, in_folder: Path) -> None:
    """Of few images each, so that there are several."""
    monkeypatch.setattr(decoded, "FILE_BYTES", 20_000)


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Once called, files can no longer be decoded."""

    def forbid() -> None:
        def refuse(path: Path, mode: str) -> None:
            raise AssertionError(f"{path} is decoded")

        for module in (imagenet, image_folder):
            monkeypatch.setattr(module, "open_image", refuse)

    return forbid


def crops(**arguments: Any) -> Data:
    return imagenet.load("images", size=16, resize=20, workers=0, **arguments)


def everything(data: Data) -> list[Tensor]:
    """Batches of training and of both evaluations."""
    batches = [*data.train.training_batches(4, seed=7), *data.val.batches(4), *data.tests["test"].batches(4)]
    return [x for x, _ in batches]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))


@pytest.mark.parametrize("train_resize", [None, 30])
def test_kept_images_are_those_that_decoding_gives(
    train_resize: int | None, small_files: None, no_decoding: Callable[[], None]
) -> None:
    small_imagenet(Path("images"))
    plain = everything(crops(train_resize=train_resize))
    first = crops(train_resize=train_resize, disk_cache=True)
    assert same(everything(first), plain) and not stored()  # nothing is written before it is asked for
    first.fill()
    assert len(stored()) == 3 and max(len(list(place.files())) for place in stored()) > 2
    again = crops(train_resize=train_resize, disk_cache=True)
    no_decoding()
    assert same(everything(first), plain) and same(everything(again), plain)
    copied = pickle.loads(pickle.dumps(again.train.images))  # type: ignore[attr-defined]  # as a worker gets it
    indices = torch.arange(len(copied))
    assert same(list(copied.read([indices], 3)), list(again.train.images.read([indices], 3)))  # type: ignore[attr-defined]
    again.train.images.images.workers = 1  # type: ignore[attr-defined]
    assert same([x for x, _ in again.train.training_batches(4, seed=7)], plain[: again.train.steps(4)])


def test_smaller_training_images_are_other_images() -> None:
    """Those whose shorter side is no longer than asked for stay as they are."""
    path = Path(image_folder.__file__)  # any: the picture is given
    picture = torch.randint(0, 255, (40, 60, 3), dtype=torch.uint8).numpy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(imagenet, "open_image", lambda *_: imagenet.Image.fromarray(picture))
        shapes = [imagenet.RandomCrop(8, (0.1, 1.0), longest).prepare(path).shape for longest in (None, 20, 40, 50)]
    assert shapes == [(40, 60, 3), (20, 30, 3), (40, 60, 3), (40, 60, 3)]


@pytest.mark.parametrize("cache_mib", [0, 1])
def test_an_image_folder_is_decoded_once(
    cache_mib: int, small_files: None, no_decoding: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the run that needs it, in memory or not; statistics and images are those without a cache."""
    write_folder(Path("images"), ("train", "val", "test"))
    keys = [
        "data=image_folder",
        "data.root=images",
        "data.workers=0",
        "data.batch_size=4",
        f"data.cache_mib={cache_mib}",
    ]
    wanted = build.experiment(compose_plain([*TINY, *keys])).data
    plain = everything(wanted)
    build.experiment(compose_plain([*TINY, *keys, "data.disk_cache=true"]))
    no_decoding()
    monkeypatch.setattr(image_folder, "_only_size", lambda *of: (10, 8))
    data = build.experiment(compose_plain([*TINY, *keys, "data.disk_cache=true"])).data
    assert data.info == wanted.info and same(everything(data), plain)


def test_who_goes_on_after_a_killed_process_keeps_its_files(
    small_files: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small_imagenet(Path("images"))
    write = image_cache.ImageCache.write
    with monkeypatch.context() as patch:

        def killed(self: Any, number: int, images: Any) -> Path:
            if number == 2:
                raise KeyboardInterrupt
            return write(self, number, images)

        patch.setattr(image_cache.ImageCache, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            crops(disk_cache=True).train.fill()  # type: ignore[attr-defined]
    (half,) = stored()
    before = {path: path.stat().st_mtime_ns for path in half.files()}
    assert len(before) == 2 and half.about() is None
    (half.folder / "000099-0123456789abcdef.u8").write_bytes(b"of other sizes")
    (half.folder / "notes.u8").write_bytes(b"mine")
    (half.folder / ".000002-0123456789abcdef.u8.0123456789ab.partial").write_bytes(b"half a file")
    data = crops(disk_cache=True)
    data.train.fill()  # type: ignore[attr-defined]
    files = list(half.files())
    assert {path: path.stat().st_mtime_ns for path in before} == before and "000099" not in str(files)
    assert (half.folder / "notes.u8").exists() and not list(half.folder.glob(".*.partial"))
    assert [line.split()[1] for line in capsys.readouterr().err.splitlines()] == ["22", "18"]
    assert same([x for x, _ in data.train.training_batches(4, 1)], [x for x, _ in crops().train.training_batches(4, 1)])


def test_damage_is_seen_and_mended(small_files: None, caplog: pytest.LogCaptureFixture) -> None:
    small_imagenet(Path("images"))
    plain = everything(crops())
    crops(disk_cache=True).fill()
    for place in stored():
        path = next(iter(place.files()))
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.unlink()
        path.write_bytes(content)
    with caplog.at_level(logging.WARNING, "repq"):
        data = crops(disk_cache=True)
        assert same(everything(data), plain)
    assert sum("is damaged: its images are decoded again" in message for message in caplog.messages) == 3
    data.fill()
    assert same(everything(crops(disk_cache=True)), plain)
    assert all(len(place.sound()) == len(list(place.files())) for place in stored())
    for put in (
        Path.mkdir,
        os.mkfifo,
        lambda path: path.symlink_to("nowhere"),
    ):  # in the place of a file and of what is said
        for place in stored():
            for path in (next(iter(place.files())), place.folder / "about.json"):
                path.unlink()
                put(path)
        crops(disk_cache=True).fill()
        assert same(everything(crops(disk_cache=True)), plain)
        assert all(place.about() and len(place.sound()) == len(list(place.files())) for place in stored())


def test_images_that_change_are_others(small_files: None) -> None:
    small_imagenet(Path("images"))
    crops(disk_cache=True).fill()
    shutil.copy("images/val/n01440764/00.png", "images/val/n01440764/01.png")
    data = crops(disk_cache=True)
    assert same(everything(data), everything(crops())) and data.tests["test"].images.images.decoded is None  # type: ignore[attr-defined]
    data.fill()
    assert len(stored()) == 4


def test_a_full_disk_is_refused_before_it_is_full(in_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_imagenet(Path("images"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=12_000))
    keys = ["data=imagenet", "data.root=images", "data.size=16", "data.resize=20", "data.batch_size=4"]
    with pytest.raises(DataError, match=r"The 22 decoded images of images/train need \S+ kB in .* 12\.0 kB are free: "):
        build.experiment(compose_plain([*TINY, *keys, "data.workers=0", "data.disk_cache=true"]))
    assert [len(list(place.files())) for place in stored() if place.about() is None] == [0]


def test_one_process_decodes_and_the_others_wait(small_files: None, capsys: pytest.CaptureFixture[str]) -> None:
    small_imagenet(Path("images"))
    first, second = crops(disk_cache=True).train, crops(disk_cache=True).train
    place = second.images.images._cache()  # type: ignore[attr-defined]
    with place.held():
        waiting = threading.Thread(target=second.fill)  # type: ignore[attr-defined]
        waiting.start()
        deadline, said = time.monotonic() + 60, ""
        while "waiting for it" not in said:
            assert time.monotonic() < deadline
            time.sleep(0.3)  # long enough to be told twice
            said += capsys.readouterr().err
        assert place.about() is None and said.count("waiting for it") == 1
    waiting.join()
    assert "Decoding 22 images" in capsys.readouterr().err
    first.fill()  # type: ignore[attr-defined]
    assert [found.key for found in stored()] == [place.key] and not capsys.readouterr().err


def test_images_are_listed_and_pruned(small_files: None, capsys: pytest.CaptureFixture[str]) -> None:
    small_imagenet(Path("images"))
    data = crops(disk_cache=True)
    data.fill()
    plain = everything(data)
    capsys.readouterr()
    assert main(["cache", "list"]) == 0
    shown = capsys.readouterr().out
    assert "No FP stage is stored" in shown and "3 sets of decoded images, " in shown
    assert "22      images/train  RGB  " in shown and "the shorter side scaled to 20, the central 16x16" in shown
    assert main(["cache", "prune"]) == 0 and len(stored()) == 3
    with stored()[0].held():
        assert main(["cache", "prune", "--days", "0"]) == 0
    assert f"{stored()[0].key} is being filled: left alone" in capsys.readouterr().out and len(stored()) == 1
    assert main(["cache", "prune", stored()[0].key]) == 0 and not stored()
    assert same(everything(data), plain)  # who reads them goes on
    assert main(["cache", "list", "--images", "nowhere"]) == 3
