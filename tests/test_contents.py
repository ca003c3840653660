"""Files are read once, and again as soon as they may hold something else; the store is never believed blindly."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from repq_cli.data import contents
from repq_cli.data.contents import STORE, content_hash, file_hashes
from repq_cli.errors import DataError


@pytest.fixture
def paths(in_folder: Path) -> list[Path]:
    Path("images").mkdir()
    made = [Path("images", str(index)) for index in range(700)]
    for path in made:
        path.write_bytes(path.name.encode().rjust(8))
    return made


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """The names of the files read since the last call; files count as old enough to be remembered."""
    seen: list[str] = []
    real = contents._read

    def watched(path: Path) -> bytes:
        seen.append(path.name)
        return real(path)

    def taken() -> list[str]:
        names = sorted(seen, key=int)
        seen.clear()
        return names

    monkeypatch.setattr(contents, "_read", watched)
    monkeypatch.setattr(contents, "SETTLED_NS", -1)
    return taken


def expected(paths: list[Path]) -> list[str]:
    return [content_hash(path.read_bytes()) for path in paths]


def test_files_are_read_once_and_again_when_they_change(paths: list[Path], read: Callable[[], list[str]]) -> None:
    assert file_hashes(paths) == expected(paths) and len(read()) == 700
    assert file_hashes([path.absolute() for path in paths]) == expected(paths) and not read()
    before = paths[3].stat()
    paths[3].write_bytes(b"rewritten"[:8])  # in place, of the same size, with the old times
    os.utime(paths[3], ns=(before.st_atime_ns, before.st_mtime_ns))
    paths[5].rename("aside")
    paths[6].rename(paths[5])
    Path("aside").rename(paths[6])
    assert file_hashes(paths) == expected(paths) and read() == ["3", "5", "6"]
    assert file_hashes(paths) == expected(paths) and not read()


def test_a_file_that_has_just_been_written_is_not_remembered(
    paths: list[Path], read: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may change again within the resolution of its times."""
    monkeypatch.setattr(contents, "SETTLED_NS", 3600 * 10**9)
    for _ in range(2):
        assert file_hashes(paths[:3]) == expected(paths[:3]) and read() == ["0", "1", "2"]


@pytest.mark.parametrize("damage", ["no database", "another table", "no folder", "read-only"])
def test_a_store_that_is_of_no_use_costs_time_alone(
    damage: str, paths: list[Path], read: Callable[[], list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    if damage == "no folder":
        Path("outputs").write_text("in the way")
    else:
        STORE.parent.mkdir(parents=True)
    if damage == "no database":
        STORE.write_bytes(b"nothing of the kind" * 100)
    elif damage == "another table":
        with sqlite3.connect(STORE) as database:
            database.execute("CREATE TABLE contents (path, other)")
        database.close()
    elif damage == "read-only":
        file_hashes(paths[:2])
        database = sqlite3.connect(STORE)
        database.execute("CREATE TRIGGER no BEFORE INSERT ON contents BEGIN SELECT RAISE(ABORT, 'read-only'); END")
        database.close()
        read()
    for _ in range(2):
        assert file_hashes(paths) == expected(paths)
        assert len(read()) == (698 if damage == "read-only" else 700)
    assert caplog.text.count(f"{STORE} cannot be used") == 1, "and not once for each split"


def test_a_damaged_entry_is_not_believed(paths: list[Path], read: Callable[[], list[str]]) -> None:
    for damage in ("x'0000000000000000'", "'a text'", "NULL", "3"):  # SQLite keeps the kind beside each value
        file_hashes(paths[:4])
        with sqlite3.connect(STORE) as database:
            database.execute(f"UPDATE contents SET content = {damage}")
        database.close()
        read()
        assert file_hashes(paths[:4]) == expected(paths[:4]) and len(read()) == 4


def test_what_sqlite_makes_of_damage_costs_time_alone(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows that were not asked for, and messages about names that are no text: seen when bits were flipped."""

    class Damaged:
        def execute(self, question: str, *_: object) -> list[tuple[bytes, ...]]:
            if question.startswith("SELECT"):
                return [(b"another path", b"contents", b"its seal")]
            return []

        def __enter__(self) -> None:
            raise UnicodeDecodeError("utf-8", b"\xb3", 0, 1, "invalid start byte")

        def __exit__(self, *_: object) -> None: ...
        def close(self) -> None: ...

    monkeypatch.setattr(sqlite3, "connect", lambda *_, **__: Damaged())
    monkeypatch.setattr(contents, "SETTLED_NS", -1)
    contents._say_unusable.cache_clear()
    assert file_hashes(paths[:9]) == expected(paths[:9])
    assert "invalid start byte" in caplog.text


def test_many_may_use_it_at_once(paths: list[Path], read: Callable[[], list[str]]) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(file_hashes, [paths] * 4))
    assert found == [expected(paths)] * 4
    read()
    file_hashes(paths)
    assert not read()


def test_a_file_that_cannot_be_read_is_named(in_folder: Path) -> None:
    with pytest.raises(DataError, match=r"The file nowhere\.png cannot be read \(No such file"):
        file_hashes([Path("nowhere.png")])
    Path("folder.png").mkdir()
    with pytest.raises(DataError, match=r"The file folder\.png cannot be read"):
        file_hashes([Path("folder.png")])
