"""``repq plot`` and what people's folders may hold."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from synthetic_plots import (
    bench_rows,
    layer,
    named,
    step_rows,
    sweep,
    texts,
    write_bench,
    write_crops,
    write_log,
    write_weights,
)
from synthetic_runs import SUPER_RESOLUTION, config_of, done, failed, mode_and_bits, row_of, write_run

from repq_cli.report.figures.catalogue import FIGURES, drawings
from repq_cli.report.figures.reading import read_log

HOSTILE = 'a_b$x^2$ <b>&"%\n\t{}\\frac\U0001f642 \u05e9\u05dc\u05d5\u05dd \ud800/..'


def test_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    for bits in (8, 4):
        for mode in ("plain", "repq_bn", HOSTILE):
            changes = mode_and_bits(mode, bits, bits) | {
                "model.name": HOSTILE,
                "data.name": HOSTILE,
                "rep.name": HOSTILE,
            }
            write_weights(write_log(done(tmp_path / f"{bits}{mode[:2]}", changes, 92.0, 90.0)), [layer(HOSTILE)])
    write_bench(tmp_path / "b", [row | dict.fromkeys(("model", "rep", "mode", "net", "engine", "data"), HOSTILE)
                                 for row in bench_rows(widths=(0.5, 1.0))[::4]])  # fmt: skip
    words = dict.fromkeys(("model", "label", "quant", "column", "mode", "by"), HOSTILE)
    write_bench(tmp_path / "c", [row | words for row in step_rows()], bench="train", machine=HOSTILE)
    drawn, _ = drawings([tmp_path])
    assert {drawing.name.split("-")[0] for drawing in drawn} == FIGURES.keys() - {"crops", "latency"}
    for drawing in drawn:
        ElementTree.fromstring(drawing.svg())
        assert all(sign.isalnum() or sign == "-" for sign in drawing.name) and drawing.name.isascii()
        drawing.caption.encode()
    assert any("a_b$x^2$ <b>&" in text for drawing in drawn for text in texts(drawing))


DAMAGED = [
    "",
    "{",
    "[]",
    "null",
    "nonsense",
    '{"train_loss": 1}',
    '{"stage": "qat", "epoch": "x", "train_loss": 1}',
    '{"stage": "qat", "epoch": 7, "train_loss": NaN, "val_top1": 1e999}',
    '{"stage": "qat", "epoch": -1, "train_loss": 1}',
    '{"train_loss": ' + "[" * 100_000,
    '"train_loss" \x00',
]
EXTREME = [
    '{"stage": "qat", "epoch": 8, "train_loss": 1e99, "val_top1": 1e99, "step_sizes": {"a": 1e99, "taps.0": 1e-320}}',
    '{"stage": "qat", "epoch": 9, "train_loss": 1e-320, "val_top1": -5, "step_sizes": 3}',
]


@pytest.mark.parametrize("lines", [DAMAGED, *([line] for line in EXTREME)], ids=["damaged", "huge", "tiny"])
def test_logs_of_any_kind_are_drawn_as_far_as_they_go(lines: list[str], tmp_path: Path) -> None:
    run = write_log(done(tmp_path / "a", mode_and_bits("repq_bn", 4, 4), 92.0, 90.0))
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(f"{line}\n" for line in lines)
        file.write('{"stage": "qat", "epoch": 3, "train_lo')
    drawn, _ = drawings([run], ["curves", "steps"])
    assert len(drawn) == 2 and all(drawing.png(40) for drawing in drawn)
    own = write_run(tmp_path / "b", config_of(mode_and_bits("repq_bn", 4, 4)))
    (own / "metrics.jsonl").write_text("\n".join(lines))
    assert all(drawing.png(40) for drawing in drawings([own])[0])


def test_damaged_lines_are_counted_and_a_half_written_last_one_is_none(tmp_path: Path) -> None:
    run = write_log(done(tmp_path / "a", mode_and_bits("repq_bn", 4, 4), 92.0, 90.0))
    assert read_log(run / "metrics.jsonl", "top1").damaged == 0
    with (run / "metrics.jsonl").open("a") as file:
        file.write('nonsense\n{"stage": "qat", "epoch": 1, "train_loss": NaN}\n{"stage": "qat", "train_l')
    assert read_log(run / "metrics.jsonl", "top1").damaged == 2
    _, notes = drawings([run], ["curves"])
    assert [note for note in notes if "no usable numbers are left out: 2, in" in note]


@pytest.mark.parametrize("value", [float("nan"), 1e99, -1e99, 0.0, pytest.param(10**400, id="huge"), "x", None])
def test_numbers_of_any_size_do_no_harm(value: Any, tmp_path: Path) -> None:
    sweep(tmp_path, seeds=1)
    for mode, key in (("repq_bn", "metric.deployed"), ("plain", "cost.bops"), ("merged", "metric.fp")):
        config = config_of(mode_and_bits(mode, 4, 4))
        row = row_of(config, 92.0, 90.0)
        section, name = key.split(".")
        row[section][name] = value
        write_run(tmp_path / f"repvgg-{mode}-4-0", config, row)
    drawn, _ = drawings([tmp_path], ["pareto", "bits"])
    assert len(drawn) == 2 and all(drawing.png(40) for drawing in drawn)


ROW = bench_rows()[0]
BENCHES: list[Any] = [
    "x", [], {}, [3], [{}], [ROW | {"batch": 0}], [ROW | {"batch": 10**400}], [ROW | {"median_ms": -1}],
    [ROW | {"median_ms": float("nan")}], [ROW | {"metric": 3}], [ROW | {"bits": "x"}], [ROW | {"width": "x"}],
    [ROW | {"images_per_second": 0, "net": "merged"}], [ROW | {"low_ms": 1e99, "high_ms": -3}], [ROW | {"net": ["x"]}],
    [ROW | {"median_ms": 1e99, "images_per_second": 1e-99}, ROW],
    [ROW | {"net": "merged", "images_per_second": 1e-320}], [ROW | {"net": "merged", "median_ms": 1e11}, ROW],
    [ROW | {"input_shape": "x"}], [ROW | {"input_shape": [3, -1, 10**400]}],
]  # fmt: skip


def test_measurements_of_any_kind_do_no_harm(tmp_path: Path, subtests: pytest.Subtests) -> None:
    for index, rows in enumerate(BENCHES):
        with subtests.test(rows=str(rows)[:80]):
            write_bench(tmp_path / str(index), rows)
            drawn, _ = drawings([tmp_path / str(index)])
            assert all(drawing.png(40) for drawing in drawn)


STEP = step_rows()[0]
STEPS: list[Any] = [
    "x", {}, [], [3], [{}], [STEP | {"median_ms": -1}], [STEP | {"median_ms": float("nan")}], [STEP | {"column": 3}],
    [STEP | {"low_ms": 1e99, "high_ms": -3}], [STEP | dict.fromkeys(STEP, HOSTILE)],
    [STEP | {"label": f"{index}", "column": f"{index % 5}"} for index in range(90)], [STEP | {"median_ms": 1e11}, STEP],
]  # fmt: skip


def test_measurements_of_training_of_any_kind_do_no_harm(tmp_path: Path, subtests: pytest.Subtests) -> None:
    for index, rows in enumerate(STEPS):
        with subtests.test(rows=str(rows)[:80]):
            write_bench(tmp_path / str(index), rows, bench="train", batch=HOSTILE, size=-1)
            drawn, notes = drawings([tmp_path / str(index)], ["training"])
            assert drawn or notes
            assert all(drawing.png(40) for drawing in drawn)


def changed(**changes: Any) -> list[dict[str, Any]]:
    return [layer("a") | changes]


LAYERS: list[Any] = [
    3, [3], [{}], changed(edges=[]), changed(edges=[1, 1, 1]), changed(codes=[]), changed(low=2**40, high=2**40 + 15),
    changed(merged=[float("nan")]), changed(branches=3), changed(branches={"x": [1]}), changed(low=7, high=-8),
    changed(codes=[0] * 16, merged=[0] * 128), changed(codes=[-1] * 16), changed(name=None), changed(bits="4"),
]  # fmt: skip


def test_histograms_of_any_kind_do_no_harm(tmp_path: Path, subtests: pytest.Subtests) -> None:
    for index, layers in enumerate(LAYERS):
        with subtests.test(layers=str(layers)[:80]):
            run = done(tmp_path / str(index), mode_and_bits("repq_bn", 4, 4), 92.0, 90.0)
            drawn, notes = drawings([write_weights(run, layers)], ["weights"])
            assert drawn or [note for note in notes if "weights" in note]
            assert all(drawing.png(40) for drawing in drawn)


@pytest.mark.parametrize("spoil", [
    lambda folder: (folder / "original.png").write_text("no picture"),
    lambda folder: (folder / "fp.png").unlink(),
    lambda folder: (folder / "values.json").write_text("{"),
    lambda folder: (folder / "values.json").write_text('{"scale": 2, "psnr_y": 3}'),
    lambda folder: (folder / "values.json").write_text('{"scale": "x"}'),
    lambda folder: (folder / "deployed.png").write_bytes((folder / "deployed.png").read_bytes()[:60]),
])  # fmt: skip
def test_crops_of_any_kind_do_no_harm(spoil: Callable[[Path], Any], tmp_path: Path) -> None:
    run = write_crops(done(tmp_path / "a", mode_and_bits("repq", 8, 8) | SUPER_RESOLUTION, 36.5, 36.0))
    spoil(run / "crops" / "set5")
    drawn, _ = drawings([tmp_path])
    assert all(drawing.png(40) for drawing in drawn)


def test_failed_and_unfinished_runs_are_named(tmp_path: Path) -> None:
    sweep(tmp_path, seeds=1)
    failed(tmp_path / "failed", mode_and_bits("repq", 8, 8), "The loss became nan.")
    write_log(write_run(tmp_path / "running", config_of(mode_and_bits("repq_bnest", 8, 8))), qat=1)
    drawn, notes = drawings([tmp_path])
    assert [note for note in notes if "Failed: " in note] and [note for note in notes if "Unfinished" in note]
    (curves,) = named(drawn, "curves")
    assert "RepQ-BNEst" in texts(curves) and "RepQ" not in texts(curves)


def test_a_single_net_is_no_trade(tmp_path: Path) -> None:
    done(tmp_path / "a", mode_and_bits("repq_bn", 4, 4), 92.0, 90.0)
    drawn, notes = drawings([tmp_path])
    assert not drawn
    assert [note for note in notes if "cost the same, so there is no trade to draw" in note]
