"""Files that were changed at random, by bits, bytes and values: read as they are, mended, or refused in a sentence."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from repq_cli.cli import main
from repq_cli.data import contents
from repq_cli.data.contents import STORE, content_hash, file_hashes
from repq_cli.errors import DataError
from repq_cli.images.decode import open_image

pytestmark = pytest.mark.no_cover  # many cases of lines that other tests cover as well

ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    1e308,
    10**30,
    "",
    "x",
    "=1",
    "\x1b[2J",
    "\ud800",
    "a\x00",
    [],
    {},
    [[1]],
    {"a": {"b": [1]}},
]
ODD += ["../../x", "a" * 5000, float("nan")]
FORMATS = ("png", "jpg", "gif", "bmp", "ppm", "webp", "tif", "jp2", "avif")


def mutated(content: bytes, draw: random.Random) -> bytes:
    """Some bits flipped, cut off, bytes left out, put in, overwritten, or copied elsewhere."""
    kind, place, length = draw.randrange(6), draw.randrange(len(content)), draw.randrange(1, 64)
    if kind == 0:
        found = bytearray(content)
        for _ in range(draw.choice((1, 1, 2, 20))):
            found[draw.randrange(len(found))] ^= 1 << draw.randrange(8)
        return bytes(found)
    source = draw.randrange(len(content))
    middle = {1: b"", 2: b"", 3: draw.randbytes(length), 4: b"\xff" * length, 5: content[source : source + length]}[
        kind
    ]
    end = len(content) if kind == 1 else place if kind == 3 else place + length
    return content[:place] + middle + content[end:]


def poisoned(tree: Any, draw: random.Random) -> Any:
    """A copy with one value left out, or in a strange form."""
    copy = json.loads(json.dumps(tree))
    node = copy
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = draw.choice(keys)
        if isinstance(node[key], dict | list) and node[key] and draw.random() < 0.8:
            node = node[key]
            continue
        if isinstance(node, dict) and draw.random() < 0.2:
            del node[key]
        else:
            node[key] = draw.choice(ODD)
        return copy


def told(arguments: list[str], capsys: pytest.CaptureFixture[str], allowed: tuple[int, ...]) -> int:
    """The exit code of a command that says what is wrong in sentences."""
    code = main(arguments)
    said = "".join(capsys.readouterr())
    assert code in allowed and "Traceback" not in said, (arguments, code, said[-2000:])
    return code


def of_records(finished: Path, draw: random.Random, capsys: pytest.CaptureFixture[str]) -> Iterator[object]:
    """Files of runs, a line each, in tables, figures and pages."""
    assert main(["table", str(finished), "--format", "jsonl", "--out", "all.jsonl"]) == 0
    whole = Path("all.jsonl").read_bytes()
    while True:
        changed = (
            mutated(whole * 2, draw) if draw.random() < 0.5 else json.dumps(poisoned(json.loads(whole), draw)).encode()
        )
        Path("m.jsonl").write_bytes(changed + (b"\n" + whole if draw.random() < 0.5 else b""))
        form = draw.choice(("markdown", "latex", "csv", "json", "jsonl"))
        commands = [["table", "m.jsonl", "--format", form], ["report", "m.jsonl", "--out", "p.html"]]
        yield told(commands[draw.random() < 0.2], capsys, (0, 3))


def of_rows(finished: Path, draw: random.Random, capsys: pytest.CaptureFixture[str]) -> Iterator[object]:
    """A run's row, configuration and machine, for commands that read or mend it."""
    while True:
        copy = Path(shutil.copytree(finished, "copy", dirs_exist_ok=True))
        for name, read, write in (
            ("summary.json", json.loads, json.dumps), ("env.json", json.loads, json.dumps),
            ("config.yaml", yaml.safe_load, yaml.safe_dump),
        ):  # fmt: skip
            text = (finished / name).read_text()
            (copy / name).write_text(write(poisoned(read(text), draw)) if draw.random() < 0.4 else text)
        command = draw.choice(
            (["eval", f"run={copy}", "engine=deployed"], ["train", f"resume={copy}"], ["table", str(copy)])
        )
        yield told(command, capsys, (0, 2, 3))
        shutil.rmtree(copy)


def of_store(draw: random.Random) -> Iterator[object]:
    """What files hold, remembered in a database."""
    paths = [Path("files", str(number)) for number in range(200)]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(path.name.encode())
    expected = [content_hash(path.read_bytes()) for path in paths]
    assert file_hashes(paths) == expected
    whole = STORE.read_bytes()
    while True:
        STORE.write_bytes(mutated(whole, draw))
        assert file_hashes(paths) == expected
        yield "right"


def of_pictures(draw: random.Random) -> Iterator[object]:
    """Image files of every format."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 8, 3), np.uint8).repeat(5, 0).repeat(5, 1)
    for form in FORMATS:
        Image.fromarray(pixels).save(f"whole.{form}")
    while True:
        form = draw.choice(FORMATS)
        path = Path(f"x.{form}")
        path.write_bytes(mutated(Path(f"whole.{form}").read_bytes(), draw))
        try:
            open_image(path, "RGB", 10**7)
        except DataError as error:
            if str(path) not in str(error):
                raise
            yield "refused"
        else:
            yield "read"


@pytest.mark.parametrize("count", [2, pytest.param(300, marks=[pytest.mark.slow, pytest.mark.timeout(4 * 3600)])])
def test_files_changed_at_random(
    count: int, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(contents, "SETTLED_NS", -1)
    draw = random.Random(24)
    kinds: dict[str, tuple[Callable[[], Iterator[object]], int]] = {
        "records": (lambda: of_records(finished, draw, capsys), 4),
        "rows": (lambda: of_rows(finished, draw, capsys), 1),
        "store": (lambda: of_store(draw), 4),
        "pictures": (lambda: of_pictures(draw), 10),
    }
    for kind, (make, times) in kinds.items():
        found = Counter(str(next_) for _, next_ in zip(range(count * times), make(), strict=False))
        with capsys.disabled():
            print(f"\n{kind}: {dict(found)}") if count > 2 else None
