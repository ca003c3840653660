"""Files of runs, sweeps and caches, damaged: a sentence or recovery, no traceback, no wait, and no other number.

The slow run tries every file, every kind of damage and every command, and prints its figures, which docs/RELIABILITY.md
gives; the quick one tries some.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
from conftest import FINISHED
from PIL import Image

from repq_cli.cli import main
from repq_cli.train import stage

pytestmark = pytest.mark.no_cover  # many cases of lines that other tests cover as well

SECONDS = 300  # within which a command answers, whatever it reads


def _half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[len(content) // 3] ^= 4
    path.write_bytes(content)


def _large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 30)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "gone": lambda path: None,
    "half": _half,
    "a bit": _flip,
    "empty": lambda path: path.write_bytes(b""),
    "{}": lambda path: path.write_text("{}"),
    "3": lambda path: path.write_text("3"),
    "[]": lambda path: path.write_text("[]"),
    "NaN": lambda path: path.write_text('{"status": NaN}'),
    "deep": lambda path: path.write_text("[" * 100_000),
    "folder": lambda path: path.mkdir(),
    "pipe": os.mkfifo,
    "null": lambda path: path.symlink_to("/dev/null"),
    "dangling": lambda path: path.symlink_to("nowhere"),
    "no access": lambda path: path.chmod(0),
    "large": _large,
}
KEPT = ("half", "a bit", "no access")  # which change the file itself
EIGHT = ("gone", "half", "a bit", "{}", "deep", "folder", "pipe", "large")  # for commands that take their time
ALL_KINDS = {"finished": {"resume", "eval", "table"}, "half-finished": {"resume", "eval", "table"}}
ONLY = {"from": "checkpoints"}  # what a command reads of a run, where the others are tried in vain

EDITED = ("config.yaml", "sweep.json")  # by people, too: a bit may make another value of one, which is refused as such
BELIEVED = ("summary.json", "a bit")  # which people edit as well: another digit of it is another number

# Where what is damaged lies, and what a command that succeeds over it leaves: as over what is whole.
PLACES = {"cache": "outputs/cache", "sweep": "outputs/sweep/sweep"}
LEFT = {
    "predict": "found.csv",
    "upscale": "large/picture.png",
    "export": "outputs/train/run/export/model.onnx",
    "shared": "outputs/train/new/deploy/model.safetensors",
    "from": "outputs/train/new/deploy/model.safetensors",
}
OF_RUNS: dict[str, list[str]] = {
    "resume": ["train", "resume={at}"],
    "auto": ["train", *FINISHED, "resume=auto"],
    "longer": ["train", "resume={at}", "qat.epochs=3"],
    "from": ["train", *FINISHED, "fp.checkpoint={at}", "hydra.run.dir=outputs/train/new"],
    "eval": ["eval", "run={at}"],
    "onnx": ["eval", "run={at}", "engine=onnx"],
    "predict": ["predict", "run={at}", "in=picture.png", "out=found.csv"],
    "bench": ["bench", "runs=[{at}]", "rounds=1", "batch=1", "threads=1", "out=measured"],
    "export": ["export", "run={at}"],
    "diagnose": ["diagnose", "run={at}", "images=8"],
    "info": ["info", *FINISHED, "fp.checkpoint={at}"],
    "table": ["table", "outputs"],
    "plot": ["plot", "outputs", "--format", "svg", "--figure", "steps,weights"],
    "report": ["report", "outputs", "--out", "page.html"],
    "cache": ["cache", "list"],
}
COMMANDS: dict[str, dict[str, list[str]]] = {
    "finished": OF_RUNS,
    "half-finished": OF_RUNS,
    "super-resolution": {
        "upscale": ["upscale", "run={at}", "in=picture.png", "out=large"],
        **{name: OF_RUNS[name] for name in ("resume", "eval", "bench", "diagnose", "table", "report")},
    },
    "sweep": {name: OF_RUNS[name] for name in ("resume", "table", "plot", "report")},
    "cache": {
        "shared": ["train", *FINISHED, "fp.reuse=true", "hydra.run.dir=outputs/train/new"],
        "cache": ["cache", "list"],
        "prune": ["cache", "prune", "--days", "0"],
    },
}  # fmt: skip
HALF = [*FINISHED, "data.size=16", "data.batch_size=256", "qat.epochs=2"]
SUPER_RESOLUTION = ["+model=ecbsr", "model.blocks=1", "model.channels=4", "quant=w8a8", "data.patches=16",
                    "data.batch_size=16", "fp.epochs=1", "fp.reuse=false", "qat.epochs=1", "runtime.threads=1",
                    "verbosity=quiet"]  # fmt: skip


def damage(path: Path, kind: str) -> None:
    """Put something else in the file's place, whose hard links stay as they are."""
    content = path.read_bytes()
    path.unlink()
    if kind in KEPT:
        path.write_bytes(content)
    DAMAGES[kind](path)


@contextmanager
def _limited(seconds: int) -> Iterator[None]:
    """A command that waits for a pipe fails."""

    def late(*_: object) -> None:
        raise AssertionError("The command waits for ever.")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


class Damages:
    """Runs commands over damaged copies of a run, a sweep or a cache; gathers what went wrong, and counts."""

    def __init__(self, of: str, stored: Path, top: Path, capsys: pytest.CaptureFixture[str], alarm: bool = False):
        self.of, self.stored, self.top, self.capsys, self.alarm = of, stored, top, capsys, alarm
        self.at = PLACES.get(of, "outputs/train/run")
        self.row = json.loads((stored / "summary.json").read_text()) if (stored / "summary.json").exists() else None
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.expected: dict[str, bytes] = {}  # what commands leave over what is whole
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)).save(top / "picture.png")

    def restore(self) -> Path:
        """A whole copy in its place, and nothing else."""
        for name in ("outputs", "large", "measured", "found.csv", "page.html"):
            path = self.top / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        return Path(shutil.copytree(self.stored, self.top / self.at))

    def said(self, command: str) -> tuple[int, str]:
        """Exit code and output of a command."""
        self.capsys.readouterr()
        words = COMMANDS[self.of][command]
        if command == "auto" and self.of == "half-finished":
            words = ["train", *HALF, "resume=auto"]
        with _limited(SECONDS) if self.alarm else nullcontext():
            code = main([word.format(at=self.at) for word in words])
        return code, "".join(self.capsys.readouterr())

    def attempt(self, name: str, kind: str, command: str) -> None:
        if command in LEFT and command not in self.expected:
            self.restore()
            code, said = self.said(command)
            assert code == 0 or self.of == "half-finished", said
            self.expected[command] = (self.top / LEFT[command]).read_bytes() if code == 0 else b""
        damage(self.restore() / name, kind)
        case, code, said = f"{name}, {kind}, {command}", -1, ""
        try:
            code, said = self.said(command)
        except BaseException as error:
            self.wrong.append(f"{case}: {error!r}")
        self.counts["tried"] += 1
        self.counts[f"exit {code}"] += 1
        if "Traceback" in said:
            self.counts["tracebacks"] += 1
            self.wrong.append(f"{case}: {said[-1500:]}")
        elif code not in (0, 2, 3) or (code == 2 and command not in ("auto", "info") and name not in EDITED):
            self.wrong.append(f"{case}: exit {code}: {said[-500:]}")
        elif code == 3 and "outputs" not in said:
            self.wrong.append(f"{case}: names no file: {said[-500:]}")
        elif code == 0 and command in ("resume", "eval", "diagnose") and (name, kind) != BELIEVED and self._differs():
            self.wrong.append(f"{case}: another row")
        elif code == 0 and command in LEFT and (self.top / LEFT[command]).read_bytes() != self.expected[command]:
            self.wrong.append(f"{case}: another {LEFT[command]}")

    def _differs(self) -> bool:
        """Whether the row says other numbers than that of the undamaged run, if it had one; lost ones are no others."""
        if self.row is None:
            return False
        try:
            row = json.loads((self.top / self.at / "summary.json").read_text())
            return bool(row["metric"] != self.row["metric"] or row["metrics"] != self.row["metrics"])
        except (OSError, ValueError, KeyError, TypeError):
            return False


@pytest.fixture
def half_finished(in_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was killed in the second epoch of QAT."""
    end_epoch = stage.StageTrainer._end_epoch

    def dying(trainer: stage.StageTrainer, bar: object) -> None:
        if (trainer.stage.name, trainer.epoch) == ("qat", 1):
            raise SystemExit(9)  # nothing is written on the way out, as by a signal that cannot be caught
        end_epoch(trainer, bar)

    with monkeypatch.context() as patch:
        patch.setattr(stage.StageTrainer, "_end_epoch", dying)
        with pytest.raises(SystemExit):
            main(["train", *HALF, "hydra.run.dir=half"])
    return in_folder / "half"


def _stored(of: str, request: pytest.FixtureRequest) -> Path:
    """A folder that holds what commands are tried over, whole."""
    top: Path = request.getfixturevalue("in_folder")
    if of == "half-finished":
        half: Path = request.getfixturevalue("half_finished")
        return half
    if of == "finished":
        run: Path = request.getfixturevalue("finished")
        assert main(["export", f"run={run}"]) == 0 and main(["diagnose", f"run={run}", "images=8"]) == 0
        return run
    arguments = {
        "super-resolution": [*SUPER_RESOLUTION, "hydra.run.dir=stored"],
        "sweep": ["-m", *FINISHED, "quant=w4a4,w2a2", "fp.reuse=true", "hydra.sweep.dir=stored"],
        "cache": [*FINISHED, "fp.reuse=true", "hydra.run.dir=outputs/train/run"],
    }
    if of == "sweep":
        arguments["sweep"].remove("quant=w4a4")
    assert main(["train", *arguments[of]]) == 0
    return Path(shutil.copytree("outputs/cache", "stored")) if of == "cache" else top / "stored"


def test_some_damage_to_a_finished_run_ends_in_a_sentence_or_in_recovery(
    finished: Path, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damages = Damages("finished", finished, in_folder, capsys)
    names = ["config.yaml", "summary.json", "metrics.jsonl", "deploy/model.json"]
    kinds = random.Random(24).sample(sorted(DAMAGES), len(names))
    for name, kind in zip(names, kinds, strict=True):
        for command in ("eval", "predict", "resume", "table"):
            damages.attempt(name, kind, command)
    assert not damages.wrong, "\n".join(damages.wrong)


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize(("of", "command"), [(of, name) for of, commands in COMMANDS.items() for name in commands])
def test_all_damage(of: str, command: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> None:
    """Every file, every kind, every command; of a sweep's jobs, which are alike, the first."""
    stored = _stored(of, request)
    damages = Damages(of, stored, request.getfixturevalue("in_folder"), capsys, alarm=True)
    names = [name for name in _files(stored) if name.startswith(ONLY.get(command, "")) and not name.startswith("1/")]
    for name, kind in itertools.product(names, DAMAGES if of in ALL_KINDS and command in ALL_KINDS[of] else EIGHT):
        damages.attempt(name, kind, command)
    with capsys.disabled():
        print(f"\n{of}, {command}: {len(names)} files, {dict(damages.counts)}, wrong: {len(damages.wrong)}")
    assert not damages.wrong, "\n".join(damages.wrong)
