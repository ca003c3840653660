"""``repq table``: the numbers, the golden tables, and what may be averaged."""

from __future__ import annotations

import csv
import io
import json
import random
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import yaml
from hypothesis import given
from hypothesis import strategies as st
from synthetic_runs import (
    CONFIG,
    ROWS,
    config_of,
    done,
    failed,
    lines_with,
    mode_and_bits,
    overview,
    printed,
    row_of,
    write_run,
)

from repq_cli.report.cells import mean_cell, median_cell, paired_difference, with_best
from repq_cli.report.document import document
from repq_cli.report.reading import find_runs
from repq_cli.report.render.latex import latex
from repq_cli.report.render.markdown import markdown
from repq_cli.report.tables.bops import pareto_front
from repq_cli.report.tables.paired import interval

GOLDEN = Path(__file__).with_name("golden")
values = st.lists(st.floats(-100, 100), min_size=1, max_size=8)


# Numbers


@given(values)
def test_mean_and_sample_standard_deviation_are_numpys(found: list[float]) -> None:
    cell = mean_cell(found)
    assert cell.n == len(found)
    assert cell.value == pytest.approx(np.mean(found), abs=1e-9)
    assert cell.std is None if len(found) == 1 else cell.std == pytest.approx(np.std(found, ddof=1), abs=1e-9)


@given(values, st.randoms(use_true_random=False))
def test_the_order_of_seeds_does_not_matter(found: list[float], shuffler: random.Random) -> None:
    other = list(found)
    shuffler.shuffle(other)
    assert mean_cell(found) == mean_cell(other)


@given(values)
def test_the_median_is_numpys(found: list[float]) -> None:
    assert median_cell(found).value == pytest.approx(np.median(found), abs=1e-9)


@given(st.dictionaries(st.integers(0, 5), st.floats(-9, 9)), st.dictionaries(st.integers(0, 5), st.floats(-9, 9)))
def test_differences_are_paired_over_common_seeds(first: dict[int, float], second: dict[int, float]) -> None:
    cell = paired_difference(first, second)  # type: ignore[arg-type]
    common = sorted(first.keys() & second.keys())
    assert cell.n == len(common)
    if common:
        differences = np.array([first[seed] for seed in common]) - np.array([second[seed] for seed in common])
        assert cell.value == pytest.approx(differences.mean(), abs=1e-9)
        if len(differences) > 1:
            half = scipy.stats.t.ppf(0.975, len(differences) - 1) * scipy.stats.sem(differences)
            ends = (differences.mean() - half, differences.mean() + half)
            assert interval(differences.tolist()) == pytest.approx(ends, rel=1e-9, abs=1e-3 * half + 1e-9)
    else:
        assert cell.status == "missing"


def test_the_best_as_printed_is_marked_and_alone_nothing_is() -> None:
    def best(*found: float, higher: bool = True) -> list[bool]:
        return [cell.best for cell in with_best([mean_cell([value]) for value in found], higher, "{:.2f}".format)]

    assert best(71.0, 71.001, 70.0) == [True, True, False]
    assert best(71.0, 70.0, higher=False) == [False, True]
    assert best(71.0) == [False]


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12))
def test_the_pareto_front_is_what_nothing_dominates(points: list[tuple[int, int]]) -> None:
    found = pareto_front([(float(cost), float(quality)) for cost, quality in points])
    for (cost, quality), on_front in zip(points, found, strict=True):
        dominated = any((c <= cost and q > quality) or (c < cost and q >= quality) for c, q in points)
        assert on_front != dominated


# The golden tables


@pytest.mark.parametrize(("form", "name"), [("markdown", "table.md"), ("latex", "table.tex")])
def test_committed_rows_give_the_committed_tables_byte_for_byte(
    form: str, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROWS.parent)
    assert printed(capsys, ROWS.name, "--format", form) == (GOLDEN / name).read_text()


def test_paths_in_any_order_and_twice_give_the_same_tables(capsys: pytest.CaptureFixture[str]) -> None:
    paths = sorted(path for path in ROWS.iterdir() if path.is_dir())
    whole = printed(capsys, ROWS)
    assert printed(capsys, *reversed(paths), ROWS / "sweep", ROWS / "short" / "summary.json") == whole


def test_rows_in_any_order_give_the_same_tables() -> None:
    runs, notes = find_runs([ROWS])
    whole = document(runs, notes, [], False)
    for seed in range(5):
        shuffled = list(runs)
        random.Random(seed).shuffle(shuffled)
        assert markdown(document(shuffled, notes, [], False)) == markdown(whole)


def test_formats_hold_the_same_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    rows = list(csv.DictReader(io.StringIO(printed(capsys, ROWS, "--format", "csv"))))
    content = json.loads(printed(capsys, ROWS, "--format", "json"), parse_constant=pytest.fail)
    tables = [table for chapter in content["chapters"] for table in chapter["tables"]]
    cells = [cell for table in tables for line in table["lines"] for cell in line if isinstance(cell, dict)]
    numbers = [cell["value"] for cell in cells if "value" in cell]
    assert [float(row["value"]) for row in rows if row["value"]] == numbers
    assert {row["status"] for row in rows} == {"done", "failed", "missing", "unfinished"}
    (bnest,) = [row for row in rows if row["table"] == "overview" and row["column"] == "Deployed"
                and (row["subject"][:8], row["Mode"], row["Bits"]) == ("imagenet", "RepQ-BNEst", "4 bit")]  # fmt: skip
    assert float(bnest["value"]) == pytest.approx(np.mean([69.7, 70.16]))
    assert float(bnest["std"]) == pytest.approx(np.std([69.7, 70.16], ddof=1))
    assert (bnest["n"], bnest["unit"], bnest["status"]) == ("2", "%", "done")


def test_latex_is_balanced_and_every_line_has_as_many_cells() -> None:
    text = latex(document(*find_runs([ROWS]), [], True))
    for name in ("table", "tabular"):
        assert text.count(f"\\begin{{{name}}}") == text.count(f"\\end{{{name}}}") > 0
    for tabular in text.split("\\begin{tabular}{")[1:]:
        columns = tabular.index("}")
        body = tabular.partition("\\midrule")[2].partition("\\bottomrule")[0]
        assert {line.count(" & ") + 1 for line in body.splitlines() if line.endswith("\\\\")} == {columns}


# What may stand in one cell


def test_only_seeds_are_averaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done(tmp_path / "a", {"seed": 0}, 70.0, 70.0)
    done(tmp_path / "b", {"seed": 1}, 70.0, 71.0)
    for key, value in {"seed": 2, "verbosity": "debug", "runtime.threads": 2, "data.root": "/other"}.items():
        done(tmp_path / "c", {"seed": 2, key: value}, 70.0, 72.0)
        text = overview(capsys, tmp_path)
        assert "71.00 ± 1.00" in text and "over 3 seeds" in text and "alike" not in text
    for key, value in {"fp.epochs": 8, "optim.momentum": 0.5, "data.batch_size": 64, "rep.batch_norm": False}.items():
        done(tmp_path / "c", {"seed": 2, key: value}, 70.0, 72.0)
        text = overview(capsys, tmp_path)
        written = yaml.safe_dump(value).partition("\n")[0]
        assert len(lines_with(text, "Plain", f"{key}={written}", "72.00")) == 1
        assert "70.50 ± 0.71 (2)" in text


def test_a_key_that_older_configurations_lack_is_a_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done(tmp_path / "new", {"seed": 0, "quant.symmetric": True}, 70.0, 71.0)
    done(tmp_path / "old", {"seed": 1}, 70.0, 72.0)
    text = overview(capsys, tmp_path)
    assert lines_with(text, "quant.symmetric=true", "71.00") and lines_with(text, "quant.symmetric not set", "72.00")


def test_plain_stands_beside_every_block_with_the_same_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for rep, value in (("acnet", 71.0), ("repvgg", 72.0)):
        done(tmp_path / rep, mode_and_bits("merged", 8, 8) | {"rep.name": rep}, 71.0, value)
    done(tmp_path / "other", mode_and_bits("merged", 8, 8) | {"rep.name": "ecb", "rep.batch_norm": False}, 71.0, 70.0)
    done(tmp_path / "plain", mode_and_bits("plain", 8, 8) | {"rep.name": "none", "rep.kernels": []}, 70.0, 70.5)
    text = overview(capsys, tmp_path)
    assert len(lines_with(text, "| Plain", "70.50")) == 2
    assert lines_with(text, "acnet", "Merged", "+0.50") and lines_with(text, "repvgg", "Merged", "+1.50")
    assert lines_with(text, "ecb", "Merged", "–")
    assert "70.50" not in "".join(lines_with(text, "ecb", "Plain"))


def test_the_newest_finished_run_wins_and_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done(tmp_path / "first", {}, 70.0, 60.0, finished="2026-01-02T00:00:00+00:00")
    done(tmp_path / "second", {}, 70.0, 71.0, finished="2026-01-03T00:00:00+00:00")
    failed(tmp_path / "third", {}, "A disk was full.")
    text = overview(capsys, tmp_path)
    assert "71.00" in text and "60.00" not in text
    assert lines_with(text, "3 runs of the same configuration", "second counts", "first", "third not")


def test_a_linked_copy_is_no_second_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done(tmp_path / "original", {}, 70.0, 71.0)
    config = config_of({})
    row = row_of(config, 70.0, 71.0)
    row["lineage"]["same_as"] = "original"
    write_run(tmp_path / "copy", config, row)
    assert "same configuration" not in overview(capsys, tmp_path)


def test_failed_seeds_leave_the_mean_with_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done(tmp_path / "a", {"seed": 0}, 70.0, 70.0)
    done(tmp_path / "b", {"seed": 1}, 70.0, 71.0)
    failed(tmp_path / "c", {"seed": 2}, "The loss became nan.")
    text = overview(capsys, tmp_path)
    assert "70.50 ± 0.71" in text
    assert lines_with(text, "the mean is over 2 of 3 seeds; seed 2 failed.")
    assert lines_with(text, "Failed:", "The loss became nan.")


def test_what_ended_before_its_first_step_stands_in_no_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done(tmp_path / "a", mode_and_bits("plain", 8, 8), 70.0, 70.0)
    quant = CONFIG["quant"]
    row = {"status": "failed", "error": "mode=merged has nothing to merge.", "model": "repvgg_a0", "rep": "repvgg"}
    write_run(tmp_path / "b", None, row | {"mode": "merged", "quant": quant, "seed": 0}, None)
    write_run(tmp_path / "c", None, row | {"mode": "auto", "quant": quant, "seed": 0}, None)
    text = overview(capsys, tmp_path)
    assert not lines_with(text, "Merged") and not lines_with(text, "| auto")
    assert lines_with(text, "In no table", "first step", str(tmp_path / "b"), str(tmp_path / "c"), "nothing to merge")
    file = tmp_path / "all.jsonl"
    file.write_text(printed(capsys, tmp_path, "--format", "jsonl"))
    assert printed(capsys, file, "--table", "overview").splitlines()[:8] == text.splitlines()[:8]
    (tmp_path / "b" / "metrics.jsonl").write_text('{"stage": "fp", "step": 1, "epoch": 0, "loss": 2.3}\n')
    assert lines_with(overview(capsys, tmp_path), "Merged", "failed")


def test_other_data_splits_and_metrics_stand_in_tables_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done(tmp_path / "a", {}, 70.0, 71.0)
    done(tmp_path / "b", {"data.name": "other", "seed": 1}, 70.0, 72.0)
    config = config_of({"seed": 2})
    row = row_of(config, 70.0, 73.0)
    row["metric"]["split"] = "val"
    write_run(tmp_path / "c", config, row)
    text = overview(capsys, tmp_path)
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## imagenet, top1 (%) on test",
        "## imagenet, top1 (%) on val",
        "## other, top1 (%) on test",
    ]
    assert "±" not in text


def test_fp_columns_say_when_runs_did_not_share_the_fp_net(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done(tmp_path / "a", mode_and_bits("merged", 8, 8), 70.0, 71.0, finished="2026-01-02T00:00:00+00:00")
    done(tmp_path / "b", mode_and_bits("merged", 4, 4), 65.0, 71.0, finished="2026-01-03T00:00:00+00:00")
    text = printed(capsys, tmp_path, "--table", "classification")
    assert lines_with(text, "the FP metric is not the same in all runs (65.00, 70.00)")
    assert lines_with(text, "repvgg_a0", "65.00", "71.00")


def test_qarepvgg_stands_beside_repvgg(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done(tmp_path / "a", mode_and_bits("repq_bn", 8, 8), 72.0, 72.5)
    done(tmp_path / "b", mode_and_bits("merged", 8, 8) | {"rep.name": "qarepvgg"}, 72.0, 71.5)
    done(tmp_path / "c", mode_and_bits("merged", 4, 4) | {"rep.name": "qarepvgg", "qat.epochs": 5}, 72.0, 61.5)
    text = printed(capsys, tmp_path, "--table", "classification")
    assert lines_with(text, "8 bit QARepVGG") and not lines_with(text, "4 bit QARepVGG")
    assert lines_with(text, "| repvgg ", "**72.50**", "71.50")


def test_time_is_relative_to_plain_and_machines_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for mode, fp_ms, qat_ms in (("plain", 10.0, 20.0), ("repq_bn", 15.0, 50.0), ("merged", None, 24.0)):
        config = config_of(mode_and_bits(mode, 8, 8))
        row = row_of(config, 70.0, 71.0)
        row["time"] = {"qat_step_ms": qat_ms} | ({"fp_step_ms": fp_ms} if fp_ms else {})
        write_run(tmp_path / mode, config, row)
    text = printed(capsys, tmp_path, "--table", "time")
    assert lines_with(text, "FP", "Re-param", "1.50")
    assert lines_with(text, "RepQ-BN", "5.00", "2.50") and lines_with(text, "Merged", "2.40", "1.20")
    assert "different machines" not in text
    for seed, fp_ms in ((1, 10.0), (2, 10.0), (3, 14.0)):  # the first two took the stage over
        config = config_of(mode_and_bits("plain", 8, 8, seed))
        write_run(tmp_path / str(seed), config, row_of(config, 70.0, 71.0) | {"time": {"fp_step_ms": fp_ms}})
    assert lines_with(printed(capsys, tmp_path, "--table", "time"), "FP", "Re-param", "1.25")
    (tmp_path / "merged" / "env.json").write_text(json.dumps({"cpu": "Another one", "threads": 4, "gpus": []}))
    text = printed(capsys, tmp_path, "--table", "time")
    assert lines_with(text, "different machines", "A Processor", "Another one, 1 thread")


def test_ptq_stands_in_every_line_since_qat_has_no_effect_on_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done(tmp_path / "ptq", mode_and_bits("ptq", 8, 8), 72.0, 50.0)
    for epochs in (5, 10):
        done(tmp_path / str(epochs), mode_and_bits("merged", 8, 8) | {"qat.epochs": epochs}, 72.0, 70.0)
    text = printed(capsys, tmp_path, "--table", "classification")
    assert lines_with(text, "qat.epochs=5", "50.00", "70.00") and lines_with(text, "qat.epochs=10", "50.00", "70.00")


def test_fp_nets_from_files_beside_trained_ones_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done(tmp_path / "a", {"seed": 0}, 72.0, 70.0)
    done(tmp_path / "b", {"seed": 1, "fp.checkpoint": "weights.pt"}, 72.0, 71.0)
    text = overview(capsys, tmp_path)
    assert "70.50 ± 0.71" in text and lines_with(text, "come from files in some runs (weights.pt)")


def test_files_of_fp_nets_may_differ_from_seed_to_seed_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        done(tmp_path / f"seed{seed}", {"seed": seed, "fp.checkpoint": f"seed{seed}.pt"}, 72.0, 70.0)
    assert "FP nets" not in overview(capsys, tmp_path)
    done(tmp_path / "other", {"seed": 0, "fp.checkpoint": "other.pt"}, 72.0, 71.0)
    assert lines_with(overview(capsys, tmp_path), "2 runs of the same", "fp.checkpoint is not the same in all")


def test_folders_of_images_are_data_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where ``data.root`` is all that says which images those are, two of them are never averaged."""
    folder = {"data._target_": "repq_cli.data.image_folder.load", "data.name": "image_folder"}
    for seed, name in enumerate(("cats", "dogs")):
        done(tmp_path / name, folder | {"seed": seed, "data.root": name}, 72.0, 70.0 + seed)
    text = overview(capsys, tmp_path)
    assert lines_with(text, "data.root=cats", "70.00") and lines_with(text, "data.root=dogs", "71.00")


@pytest.mark.parametrize(("status", "word"), [("interrupted", "interrupted"), ("failed", "failed")])
def test_cells_without_a_finished_run_say_what_became_of_it(
    status: str, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of({})
    write_run(tmp_path / "a", config, row_of(config, 70.0, 71.0) | {"status": status, "metric": None})
    text = overview(capsys, tmp_path)
    assert lines_with(text, "Plain", f"| {' ' * max(0, 8 - len(word))}{word} |")
    assert "imagenet: nothing was measured" in text


def test_plain_stands_once_where_nets_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for rep in ("acnet", "repvgg"):
        done(tmp_path / rep, mode_and_bits("merged", 8, 8) | {"rep.name": rep}, 71.0, 71.0)
        done(tmp_path / f"plain_{rep}", mode_and_bits("plain", 8, 8) | {"rep.name": rep}, 70.0, 70.5)
    text = printed(capsys, tmp_path, "--table", "bops")
    assert len(lines_with(text, "Plain")) == len(lines_with(text, "| none ", "Plain", "70.50")) == 1
    assert "same configuration" not in text


def test_runs_on_other_images_are_not_compared_without_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"data.name": "image_folder", "data._target_": "repq_cli.data.image_folder.load"}

    def run(seed: int, images: str | None, **lineage: object) -> None:
        config = config_of(data | {"seed": seed})
        row = row_of(config, 70.0, 71.0 + seed)
        row["lineage"] |= {"data": images, **lineage}
        write_run(tmp_path / str(seed), config, row)

    run(0, "aa")
    run(1, "aa")
    run(2, None)
    assert "same images" not in overview(capsys, tmp_path)
    run(3, "bb", changed_data=["1 removed (test/test: cat/1.png)"])
    said = overview(capsys, tmp_path)
    (note,) = lines_with(said, "Not on the same images, though configured alike: some in")
    assert all(f"{tmp_path}/{seed}" in note for seed in (0, 1, 3)) and f"{tmp_path}/2" not in note
    (note,) = lines_with(said, "Went on over images that had changed since they began (runtime.changed_data=accept)")
    assert note.endswith(f"{tmp_path}/3.")
