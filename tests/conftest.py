"""Shared by all tests: seeds, one thread a worker, and small experiments."""

from __future__ import annotations

import gc
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import settings
from processes import Process
from torch import nn

from repq_cli.data.base import Data, DataInfo, InMemory, Split
from repq_cli.data.pictures import Patches, PictureInfo, Pictures, Upscaling, pair_of
from repq_cli.images.resize import enlarge, to_bytes
from repq_cli.models.repvgg import repvgg
from repq_cli.reparam.block import MakeBlock
from repq_cli.reparam.repvgg import repvgg_block

# A new example shows less than a minute does; where more are wanted a test says so.
settings.register_profile("suite", max_examples=30, deadline=None)
settings.load_profile("suite")

# Hydra parses its files anew for every composition: libyaml takes a tenth of the time.
yaml.SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # type: ignore[misc]

# A RepVGG of a few thousand parameters on the embedded digits: a run takes about two seconds.
TINY = [
    "+model=repvgg_a0",
    "model.blocks=[1,1,1,1]",
    "model.width=0.125",
    "fp.epochs=1",
    "fp.reuse=false",
    "qat.epochs=1",
    "verbosity=quiet",
    "runtime.threads=1",
    "runtime.tensorboard=false",
]

# The same where neither its accuracy, nor its number of steps, nor how steps begin is asked for: much less time.
QUICK = [*TINY, "data.size=16", "data.batch_size=256", "quant.init=lsq", "qat.steps_within=null"]

# The files that take longest, without those that have a group of their own.
LONG = ("test_runner", "test_sweep", "test_resume", "test_matrix", "test_cli", "test_fp_cache", "test_super_resolution")


def pytest_collection_finish() -> None:
    """What is imported by now stays: the garbage collector need not go through it again and again, nor so often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def pytest_sessionfinish() -> None:
    """Libraries complain of what is left at the end."""
    gc.unfreeze()


def pytest_itemcollected(item: pytest.Item) -> None:
    """A file is for one worker, which makes what its tests share; some files are together in a group."""
    if item.get_closest_marker("xdist_group") is None:
        item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.hookimpl(trylast=True)  # behind the shuffling
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest come first, so that no worker waits for one at the end; those of an accelerator may be skipped."""

    def is_short(item: pytest.Item) -> bool:
        group = item.get_closest_marker("xdist_group")  # doctests have none
        is_alone = group is None or group.args[0] == item.path.stem
        return is_alone and item.path.stem not in LONG

    items.sort(key=is_short)
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("accelerator"):
                item.add_marker(pytest.mark.skip(reason="there is no CUDA device here"))


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """A power cut alone tells whether it has what was written; that it is asked to, tests/test_files.py tells."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True)
def _deterministic() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@contextmanager
def own_logging() -> Iterator[None]:
    """Hydra's ``--info`` turns logging up for the whole process; each test starts as a new one would."""
    loggers = [logging.getLogger(), logging.getLogger("hydra")]
    before = [(logger, logger.level, list(logger.handlers)) for logger in loggers]
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    with own_logging():
        yield


def randomise(module: nn.Module) -> nn.Module:
    """Random batch-norm statistics and affine parameters, so that no merge is right by luck."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight, 1.0, 0.5)
            nn.init.normal_(part.bias, 0.0, 0.5)
            nn.init.normal_(part.running_mean, 0.0, 0.5)
            nn.init.uniform_(part.running_var, 0.3, 2.0)
    return module


def tiny_net(make_block: MakeBlock = repvgg_block, strides: tuple[int, ...] = (1, 1, 2, 1, 2)) -> nn.Module:
    """A RepVGG with one block per stage for 3-channel images, its batch norms randomised."""
    net = repvgg(make_block, 3, 5, [1, 2, 1, 1], [0.125, 0.125, 0.125, 0.125], list(strides))
    return randomise(net)


@pytest.fixture
def run_repq(in_folder: Path) -> Callable[..., tuple[int, Path | None]]:
    """``run_repq("train", *overrides)`` in this process: exit code and, if it left one, the run folder."""
    from repq_cli.cli import main

    seen: set[Path] = set()

    def run(command: str, *arguments: str) -> tuple[int, Path | None]:
        code = main([command, *arguments])
        folders = {path for path in in_folder.glob("outputs/train/*") if path.is_dir()}
        new = sorted(folders - seen)
        seen.update(folders)
        return code, new[-1] if new else None

    return run


@pytest.fixture
def start_repq(in_folder: Path) -> Iterator[Callable[..., Process]]:
    """``start_repq("train", *overrides)`` in a process of its own, in the same folder; none is left behind."""
    started: list[Process] = []

    def start(*arguments: str, log: str | None = "log") -> Process:
        started.append(Process(*arguments, log=log))
        return started[-1]

    yield start
    for process in started:
        process.end()


def random_data(count: int = 20, size: int = 32) -> Data:
    """Noise in ten classes, the same for training, validation and test."""
    info = DataInfo("random", (3, size, size), tuple("abcdefghij"), (0.5,) * 3, (0.25,) * 3, "none")
    images = torch.randint(0, 255, (count, 3, size, size), dtype=torch.uint8)
    split = Split(InMemory(images), torch.arange(count) % 10, info)
    return Data(info, split, split, {"test": split})


def random_pictures(scale: int = 2, colour: str = "luma", patch: int = 8) -> Data:
    """Smooth random pictures of odd sizes, the same for training, validation and test, and at every call."""
    generator = torch.Generator().manual_seed(0)
    upscaling = Upscaling(scale, colour)  # type: ignore[arg-type]
    pictures = [enlarge(torch.rand(3, 9, 10 + index, generator=generator) * 255, 4) for index in range(3)]
    pairs = [pair_of(f"{index}.png", to_bytes(picture), upscaling) for index, picture in enumerate(pictures)]
    evaluation = Pictures(pairs, upscaling)
    return Data(
        PictureInfo("random", upscaling, "none"),
        Patches(pairs, upscaling, patch, 20),
        evaluation,
        {"random": evaluation},
    )


def seal(folder: Path) -> None:
    """Give a deployed network's files, changed by a test, a digest that is right."""
    from repq_cli.deploy.network import GRAPH, TENSORS, _digest

    graph = json.loads((folder / GRAPH).read_text())
    digest = _digest(graph, (folder / TENSORS).read_bytes())
    (folder / GRAPH).write_text(json.dumps(graph | {"sha256": digest}))


def row_of(folder: Path | None) -> dict[str, Any]:
    assert folder is not None
    return json.loads((folder / "summary.json").read_text())  # type: ignore[no-any-return]


def results(folder: Path | None) -> dict[str, Any]:
    """What has to be equal in equal runs."""
    row = row_of(folder)
    return {key: row[key] for key in ("metric", "metrics", "checks", "size", "cost", "quant")}


# TINY with everything that a test may ask of a finished run: TensorBoard, and the golden losses' steps.
FINISHED = [*(a for a in TINY if not a.startswith("runtime.tensorboard")), "quant=w4a4", "runtime.log_every=2"]


# QUICK, with steps enough in its log to see that a run has gone on as it began.
LOGGED = [*QUICK, "quant=w4a4", "runtime.log_every=2"]


def _run_of(arguments: list[str], folder: Path) -> Path:
    from repq_cli.cli import main

    with own_logging(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", *arguments]) == 0
    (run,) = folder.glob("outputs/train/*")
    return run


@pytest.fixture(scope="session")
def _finished_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The only run of ``FINISHED``; tests get copies, so that none sees what another did to it."""
    return _run_of(FINISHED, tmp_path_factory.mktemp("finished"))


@pytest.fixture
def finished(_finished_once: Path, in_folder: Path) -> Path:
    """A finished run of ``FINISHED``, which is ``TINY`` with ``quant=w4a4`` to everything but its logs."""
    return Path(shutil.copytree(_finished_once, in_folder / "finished" / _finished_once.name))


@pytest.fixture(scope="session")
def _logged_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _run_of(LOGGED, tmp_path_factory.mktemp("logged"))


@pytest.fixture
def logged(_logged_once: Path, in_folder: Path) -> Path:
    """A finished run of ``LOGGED``, which is ``QUICK`` with ``quant=w4a4`` to everything but its log."""
    return Path(shutil.copytree(_logged_once, in_folder / "logged" / _logged_once.name))


@pytest.hookimpl(wrapper=True, trylast=True)  # inside the wrapper of pytest-cov
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """``no_cover`` tests run untraced in a worker of xdist too.

    There pytest-cov has started coverage twice; for such a test it stops the second, and that wakes the first, whose
    counts nobody reads but whose tracing takes as long as the test itself.
    """
    tracing = sys.gettrace()
    if tracing is None or item.get_closest_marker("no_cover") is None:
        return (yield)
    sys.settrace(None)
    try:
        return (yield)
    finally:
        sys.settrace(tracing)


@pytest.fixture(scope="session", autouse=True)
def _no_stage_is_kept_where_tests_are_started() -> Iterator[None]:
    """FP stages of one test must not reach another, nor a later session: tests that keep some do so in own folders."""
    kept = Path("outputs/cache/fp").absolute()
    before = set(kept.glob("*"))
    yield
    assert set(kept.glob("*")) == before, f"A test without fp.reuse=false and a folder of its own has left {kept}."
