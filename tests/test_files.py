"""Files are whole or absent, flushed in the right order, sealed; and what stands in their place is never believed."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from repq_cli.data.identity import Identity, Listing
from repq_cli.errors import DataError
from repq_cli.files import (
    LARGEST,
    link,
    make_folder,
    own_name,
    parsed_json,
    read_regular,
    unproven_in,
    write_atomically,
)
from repq_cli.runs.folder import RunFolder
from repq_cli.runs.sweep import SweepFolder
from repq_cli.sealed import ONNX_MARK, has_seal, seal, sealed_json, without_json_seal
from repq_cli.train import checkpoint

DEAD = 4_194_305  # above the largest process id that Linux gives


def test_every_flipped_bit_of_a_checkpoint_is_found(tmp_path: Path) -> None:
    file = tmp_path / "net.pt"
    checkpoint.save(file, {"net": {"weight": torch.arange(3.0)}})
    whole = file.read_bytes()
    assert torch.load(file, weights_only=True)["net"]["weight"].tolist() == [0, 1, 2]  # by torch alone, too
    for position in range(0, len(whole), 5):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=r"net\.pt"):
            checkpoint.load(file)
    for length in (0, 1, len(whole) // 2, len(whole) - 75, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"net\.pt"):
            checkpoint.load(file)


def test_a_checkpoint_of_an_earlier_version_has_no_seal(tmp_path: Path) -> None:
    torch.save({"format": 1, "net": {"weight": torch.ones(2)}}, tmp_path / "old.pt")
    assert checkpoint.load(tmp_path / "old.pt")["net"]["weight"].tolist() == [1, 1]


def test_a_damaged_last_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path)
    make_folder(folder.checkpoints)
    content: dict[str, Any] = {"stage": "fp", "net": {}, "signature": {}, "earlier": {}, "totals": {}}
    content |= dict.fromkeys(("best_score", "best_epoch", "seconds", "metrics_bytes"), 0)
    content |= {"step_seconds": [], "optimizer": {"state": {}, "param_groups": []}}
    for epoch in range(2):
        checkpoint.save_last(folder, content | {"epoch": epoch})
    before, newest = folder.previous.read_bytes(), folder.last.read_bytes()

    def refused(path: Path) -> None:
        raise OSError(errno.EMFILE, "Too many open files", str(path))

    with monkeypatch.context() as patch:  # what says nothing of the file is no damage to it
        patch.setattr("repq_cli.sealed.open_regular", refused)
        with pytest.raises(OSError, match="Too many open files"):
            checkpoint.load_last(folder)
    assert folder.last.read_bytes() == newest
    folder.last.write_bytes(newest[:-1])
    found = checkpoint.load_last(folder)
    assert found is not None and found["epoch"] == 0 and "previous.pt is whole" in caplog.text
    assert folder.last.read_bytes() == before  # no damaged file is kept as the previous one
    checkpoint.save_last(folder, content | {"epoch": 1})
    assert folder.previous.read_bytes() == before
    folder.last.unlink()
    folder.last.mkdir()
    with pytest.raises(DataError, match=r"last\.pt"):
        checkpoint.load_last(folder)


def test_every_flipped_bit_of_what_is_known_of_data_is_found(tmp_path: Path) -> None:
    file = tmp_path / "data.json.gz"
    known = Identity({"train": Listing(["a"], ["b"], [1]), "val": None}, "stated")
    known.save(file)
    assert Identity.load(file) == known
    whole = file.read_bytes()
    for position in range(len(whole) - 75):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        with pytest.raises(DataError, match=r"data\.json\.gz is damaged"):
            Identity.load(file)


def test_seals_of_other_formats(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"graph" + seal(b"graph", ONNX_MARK))
    assert has_seal(file, ONNX_MARK) and not has_seal(file)
    file.write_bytes(b"grapa" + seal(b"graph", ONNX_MARK))
    with pytest.raises(ValueError, match="not those that were written"):
        has_seal(file, ONNX_MARK)
    about = {"time": {"a": 0.1, "b": None}, "run": "é"}
    assert without_json_seal(sealed_json(about)) == without_json_seal(about) == about
    with pytest.raises(ValueError, match="not what was written"):
        without_json_seal(sealed_json(about) | {"run": "e"})


def test_content_reaches_the_disk_before_its_name_and_both_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def noted(name: str, told: Callable[..., str]) -> None:
        real = getattr(os, name)

        def call(*args: Any) -> Any:
            calls.append(told(*args))
            return real(*args)

        monkeypatch.setattr(os, name, call)

    noted("fsync", lambda number: "flush folder" if stat.S_ISDIR(os.fstat(number).st_mode) else "flush file")
    noted("replace", lambda *_: "rename")
    noted("link", lambda *_: "link")
    write_atomically(tmp_path / "a", b"content")
    assert calls == ["flush file", "rename", "flush folder"]
    calls.clear()
    link(tmp_path / "a", tmp_path / "b")
    assert calls == ["link", "rename", "flush folder"]
    calls.clear()
    make_folder(tmp_path / "c/d")
    assert calls == ["flush folder"] * 2  # of the names c and d


def test_what_dead_processes_left_goes_and_what_live_ones_write_stays(tmp_path: Path) -> None:
    system = own_name().partition("-")[0]
    dead = f"{system}-{DEAD}-{'0' * 12}"
    alive = [tmp_path / f".best.pt.{name}-{'0' * 12}.partial" for name in (f"{system}-1", "12345678-1")]
    left = [tmp_path / f".best.pt.{dead}.partial", tmp_path / f".{'x' * 180}.{dead}.partial"]
    mine = [tmp_path / name for name in (".partial", ".a.partial", "unproven-mine", "b.partial")]
    for file in (*alive, *left, *mine):
        file.touch()
    unproven = make_folder(tmp_path / f"unproven-{dead}")
    (unproven / "model.onnx").touch()
    with unproven_in(tmp_path) as folder:
        assert folder.is_dir() and not unproven.exists()
        write_atomically(tmp_path / "best.pt", b"")
    assert sorted(tmp_path.iterdir()) == sorted([*alive, *mine, tmp_path / "best.pt"])


def test_special_files_are_not_opened(tmp_path: Path, subtests: pytest.Subtests) -> None:
    for kind in ("folder", "pipe", "device", "nothing", "dangling", "large", "loop"):
        with subtests.test(kind):
            (tmp_path / kind).mkdir()
            check_that_is_not_opened(kind, tmp_path / kind)


def check_that_is_not_opened(kind: str, place: Path) -> None:
    file = place / "summary.json"
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind in ("device", "dangling", "loop"):
        file.symlink_to({"device": "/dev/zero", "dangling": "nowhere", "loop": file.name}[kind])
    elif kind == "large":
        with file.open("wb") as opened:
            opened.truncate(LARGEST + 1)
    with pytest.raises(OSError):  # noqa: PT011
        read_regular(file)
    folder = RunFolder(place)
    if kind in ("nothing", "dangling"):
        assert folder.read_row() is None
    else:
        with pytest.raises(DataError, match=r"summary\.json"):
            folder.read_row()
    assert folder.status is None


def laughs(first: str, form: str) -> str:
    """YAML whose eight lines stand for five million of ``first``."""
    lines = [f"x: &x {first}"]
    lines += [
        f"{new}: &{new} {form.format(', '.join([f'*{old}'] * 9))}"
        for old, new in zip("xabcdef", "abcdefg", strict=True)
    ]
    return "\n".join(["runtime: {}", *lines])


BOMBS = {
    "lists": laughs("[1]", "[{}]"),
    # Newer versions of PyYAML merge each key once, and then it is no more than it looks.
    "keys": laughs("{k: 1}", "{{<<: [{}]}}") + "\n" + "x: [" * 200,
    "itself": "runtime: &a {b: *a}",
    "indented": "runtime:\n" + "".join(f"{' ' * depth}a:\n" for depth in range(1, 300)),
}


NO_OBJECTS = [b"", b"3", b"[]", b"null", b'{"a": ', b"[" * 10**5, b'{"a":' * 10**5, b"\xff\x00"]


def test_what_is_no_json_object_is_damage(tmp_path: Path, subtests: pytest.Subtests) -> None:
    for content in NO_OBJECTS:
        with subtests.test(content[:9]):
            with pytest.raises(ValueError):  # noqa: PT011
                parsed_json(content)
            RunFolder(tmp_path).row_file.write_bytes(content)
            with pytest.raises(DataError, match=r"summary\.json is damaged"):
                RunFolder(tmp_path).read_row()
    for name, text in BOMBS.items():
        with subtests.test(name):
            RunFolder(tmp_path).config_file.write_text(text)
            with pytest.raises(DataError, match=r"config\.yaml cannot be read"):
                RunFolder(tmp_path).read_config()


def test_links_through_which_would_be_written_are_refused(tmp_path: Path) -> None:
    """In a folder that somebody sent they may lead anywhere; files that are replaced need no such care."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "run").mkdir()
    sweep, run = SweepFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    for name in (
        "train.log",
        "metrics.jsonl",
        ".lock",
        "deploy",
        "tb",
        "crops/set",
        "0",
        ".stop",
        "optuna.db",
        ".running",
    ):
        link = run.path / name
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(tmp_path / "mine")
        with pytest.raises(DataError, match=r"is a link to .*mine, and writing there would change that"):
            (sweep if name in ("0", ".stop", "optuna.db", ".running") else run).refuse_links()
        link.unlink()
    run.config_file.symlink_to(tmp_path / "mine/config")
    run.refuse_links()
    sweep.refuse_links()
    run.write_config({"runtime": {}})
    assert not run.config_file.is_symlink() and not list((tmp_path / "mine").iterdir())
