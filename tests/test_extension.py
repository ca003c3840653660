"""Runs that go on to more epochs than they were begun with, and stages that end before all of theirs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import QUICK

from repq_cli.build import stored
from repq_cli.cli import main
from repq_cli.errors import ConfigError
from repq_cli.runs.folder import RunFolder
from repq_cli.train.extension import extension

CONSTANT = [*QUICK, "quant=w4a4", "schedule=constant"]


def test_more_epochs_at_a_constant_rate_are_exactly_those_of_a_longer_run(
    run_repq: Callable[..., tuple[int, Path | None]], capsys: pytest.CaptureFixture[str]
) -> None:
    _, short = run_repq("train", *CONSTANT)
    _, long = run_repq("train", *CONSTANT, "qat.epochs=2", f"fp.checkpoint={short}")
    assert short and long
    assert main(["train", f"resume={short}", "qat.epochs=2", "verbosity=normal"]) == 0
    assert "exactly a run of 2 epochs" in capsys.readouterr().out
    row, expected = (json.loads((folder / "summary.json").read_text()) for folder in (short, long))
    assert row["status"] == "done" and row["metric"] == expected["metric"]
    assert row["lineage"]["extended"] == [{"stage": "qat", "after": 1, "from": 1, "to": 2, "exact": True}]
    for path in (long / "deploy").iterdir():
        assert path.read_bytes() == (short / "deploy" / path.name).read_bytes(), path.name
    lines = [(folder / "metrics.jsonl").read_text().splitlines() for folder in (short, long)]
    assert [line for line in lines[0] if '"qat"' in line] == lines[1]

    # At such a rate no epoch is better than the first.
    still = ["mode=merged", f"fp.checkpoint={short}", "qat.epochs=9", "qat.patience=2", "qat.lr=1e-20"]
    _, stopped = run_repq("train", *CONSTANT, *still, "verbosity=normal")
    said = capsys.readouterr().out
    assert stopped and json.loads((stopped / "summary.json").read_text())["time"]["qat_stopped_after"] == 3
    assert "QAT ends after 3 of 9 epochs: none since epoch 1 has" in said and "stopped after 3 epochs" in said
    for change, sentence in (
        (["qat.epochs=1"], "has trained: name 3 to end there, or more"),
        (["qat.epochs=20"], "set that to null, or to more"),
        (["fp.epochs=5"], "its FP net came from"),
        (["qat.lr=1"], "qat.lr=1 cannot be changed by resume="),
        (["qat.epochs=-1"], "at least 0"),
    ):
        before = Path(stopped, "summary.json").read_bytes()
        assert main(["train", f"resume={stopped}", *change]) == 2
        assert sentence in capsys.readouterr().err
        assert Path(stopped, "summary.json").read_bytes() == before


def test_another_schedule_says_what_becomes_of_the_rate(finished: Path) -> None:
    folder = RunFolder(finished)
    before = stored(folder, [])
    changed = extension(folder, before, stored(folder, [], {"qat": {"epochs": 4}}))
    assert changed is not None and not changed.notes[0]["exact"]
    assert "schedule=cosine is drawn over 4 epochs from here on" in changed.sentences[0]
    # One warm-up epoch, and then as the cosine of three: a rate that was not the end of anything.
    assert f"the rate goes from {before.qat.lr:.3g} to {before.qat.lr:.3g}." in changed.sentences[0]
    assert extension(folder, before, before) is None
    with pytest.raises(ConfigError, match="too late"):
        extension(folder, before, stored(folder, [], {"fp": {"epochs": 4}}))
