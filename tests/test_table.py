"""``repq table``: what may be averaged, what is said of the rest, and how it is printed."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from synthetic_runs import CONFIG, ROWS, config_of, done, failed, mode_and_bits, row_of, write_run

from repq_cli.cli import main
from repq_cli.report.cells import mean_cell, median_cell, paired_difference, with_best
from repq_cli.report.document import TABLES, document
from repq_cli.report.published import published
from repq_cli.report.render.data import as_csv, as_json
from repq_cli.report.render.latex import latex
from repq_cli.report.render.markdown import markdown
from repq_cli.report.runs import find_runs, read_run
from repq_cli.report.tables.bops import pareto_front

GOLDEN = Path(__file__).with_name("golden")
values = st.lists(st.floats(-100, 100), min_size=1, max_size=8)


def printed(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    """What ``repq table`` prints; of a mistake, what it complains of."""
    capsys.readouterr()
    assert main(["table", *map(str, arguments)]) == code
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return out if code == 0 else err


def lines_with(text: str, *words: str) -> list[str]:
    """The lines that have all of ``words``."""
    return [line for line in text.splitlines() if all(word in line for word in words)]


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


def overview(capsys: pytest.CaptureFixture[str], *paths: Path) -> str:
    return printed(capsys, *paths, "--table", "overview")


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


def test_a_job_that_could_not_start_is_shown_in_its_cell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done(tmp_path / "a", mode_and_bits("plain", 8, 8), 70.0, 70.0)
    quant = CONFIG["quant"]
    row = {"status": "failed", "error": "mode=merged has nothing to merge.", "model": "repvgg_a0", "rep": "repvgg"}
    write_run(tmp_path / "b", None, row | {"mode": "merged", "quant": quant, "seed": 0}, None)
    write_run(tmp_path / "c", None, row | {"mode": "auto", "quant": quant, "seed": 0}, None)
    text = overview(capsys, tmp_path)
    assert lines_with(text, "Merged", "failed") and not lines_with(text, "| auto")
    assert lines_with(text, "Failed:", str(tmp_path / "b"), str(tmp_path / "c"), "nothing to merge")


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
    (tmp_path / "merged" / "env.json").write_text(json.dumps({"cpu": "Another one", "threads": 4, "gpus": []}))
    text = printed(capsys, tmp_path, "--table", "time")
    assert lines_with(text, "different machines", "A Processor", "Another one, 4 threads")


# Hostile folders


NOT_ROWS = ["", "[]", "3", "null", '"text"', "{", '{"status": "done"', "\x00", "{}", '{"model": []}', "[" * 100_000]


@pytest.mark.parametrize("content", NOT_ROWS)
def test_what_is_no_row_is_said_and_left_out(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done(tmp_path / "good", {}, 70.0, 71.0)
    write_run(tmp_path / "bad", None, content)
    write_run(tmp_path / "worse", content, content, content)
    text = overview(capsys, tmp_path)
    assert "71.00" in text
    assert lines_with(text, str(tmp_path / "bad"))


@pytest.mark.parametrize(
    "value", ["97.1", None, True, [], float("nan"), float("inf"), pytest.param(10**400, id="huge"), 1e200]
)
@pytest.mark.parametrize("key", ["metric.deployed", "metric.fp", "size.bytes_packed", "cost.bops", "time.qat_step_ms"])
def test_what_is_no_number_counts_as_not_measured(key: str, value: Any, tmp_path: Path) -> None:
    config = config_of({})
    row = row_of(config, 70.0, 71.0)
    section, name = key.split(".")
    row[section][name] = value
    write_run(tmp_path / "run", config, row)
    done(tmp_path / "other", {"seed": 1}, 70.0, 71.0)
    runs, notes = find_runs([tmp_path])
    assert any(key in note for note in notes)
    assert all(key not in run.numbers for run in runs if run.seed == 0)
    content = document(runs, notes, [], False)
    json.loads(as_json(content), parse_constant=pytest.fail)
    assert "nan" not in as_csv(content)


@pytest.mark.parametrize("change", [{"metrics": 3}, {"metrics": [3, {"value": "x"}]}, {"metric": "top1"}, {"size": []},
                                    {"lineage": 1}, {"seed": "0"}, {"seed": None}, {"quant": {}}, {"status": "well"},
                                    {"status": ["done"]}, {"mode": 3}, {"data": None}, {"error": 3}])  # fmt: skip
@pytest.mark.parametrize("form", [markdown, latex, as_csv, as_json])
def test_rows_of_another_schema_do_no_harm(change: dict[str, Any], form: Callable[[Any], str], tmp_path: Path) -> None:
    config = config_of({})
    write_run(tmp_path / "a", config, row_of(config, 70.0, 71.0) | change)
    write_run(tmp_path / "b", None, row_of(config, 70.0, 71.0) | change)
    assert form(document(*find_runs([tmp_path]), list(TABLES), False))


@pytest.mark.parametrize(
    "change", [{"model": 3}, {"quant": None}, {"fp": []}, {"data": {"name": {}}}, {3: 4}, {"rep": {}}]
)
def test_configurations_of_another_schema_do_no_harm(change: dict[Any, Any], tmp_path: Path) -> None:
    write_run(tmp_path / "a", config_of({}) | change, row_of(config_of({}), 70.0, 71.0))
    write_run(tmp_path / "b", config_of({}) | change)
    assert markdown(document(*find_runs([tmp_path]), [], False))


def test_names_are_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done(tmp_path / "a", {"model.name": "a|b<i>_x_ 50%&#{}~^\\$\n*", "mode.name": "my_mode"}, 70.0, 71.0)
    (line,) = lines_with(overview(capsys, tmp_path), "71.00")
    assert r"a\|b&lt;i>\_x\_ 50%&amp;#{}~^\\$ \*" in line and "my_mode" in line
    (line,) = lines_with(printed(capsys, tmp_path, "--table", "overview", "--format", "latex"), "71.00")
    escaped = r"a\textbar{}b\textless{}i\textgreater{}\_x\_ 50\%\&\#\{\}\textasciitilde{}\textasciicircum{}"
    assert line.startswith(escaped + r"\textbackslash{}\$ *")


def test_links_in_a_circle_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done(tmp_path / "a", {}, 70.0, 71.0)
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    assert "71.00" in overview(capsys, tmp_path)


# The command


def test_nothing_to_tabulate_is_an_error_that_helps(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "There is no folder outputs/ here" in printed(capsys, code=3)
    assert "nowhere does not exist" in printed(capsys, "nowhere", code=3)
    (in_folder / "outputs").mkdir()
    assert "outputs holds no runs" in printed(capsys, code=3)
    (in_folder / "file").write_text("")
    assert "neither a folder nor a summary.json" in printed(capsys, "file", code=3)
    assert "There is no table 'surve'; did you mean 'survey'?" in printed(capsys, "--table", "surve", code=2)
    done(in_folder / "outputs" / "a", {}, 70.0, 71.0)
    assert "nothing to show" in printed(capsys, "--table", "super_resolution", code=3)
    assert "There is nothing for the table super" in printed(capsys, "--table", "overview,super_resolution")
    assert lines_with(printed(capsys, "outputs", ".", "--table", "overview"), "71.00")
    (in_folder / "empty").mkdir()
    assert "empty holds no runs." in printed(capsys, "outputs", "empty")


@pytest.mark.parametrize("arguments", [["--format", "pdf"], ["--tables", "x"], ["--out"]])
def test_wrong_flags_are_usage_errors(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["table", *arguments])
    assert stop.value.code == 2
    assert "usage: repq table" in capsys.readouterr().err


def test_help_names_every_table(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["table", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in TABLES)


def test_out_writes_a_file_and_says_where_it_cannot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = done(tmp_path / "a", {}, 70.0, 71.0)
    assert printed(capsys, run, "--out", tmp_path / "table.md") == ""
    assert (tmp_path / "table.md").read_text() == printed(capsys, run)
    assert "cannot be written" in printed(capsys, run, "--out", tmp_path / "none" / "table.md", code=3)


def test_two_hundred_rows_take_less_than_two_seconds_without_torch_and_hydra(tmp_path: Path) -> None:
    for number in range(200):
        changes = mode_and_bits(
            ("plain", "merged", "repq_bn", "repq_bnest")[number % 4], 8 - number % 7, 8, number // 28
        )
        done(tmp_path / "outputs" / str(number), changes, 70.0, 71.0)
    code = "import sys; from repq_cli.cli import main; main(['table', '--out', 'table.md'])"
    check = "assert not {'torch', 'hydra', 'omegaconf', 'numpy'} & sys.modules.keys()"
    root = Path(__file__).resolve().parents[1]
    start = time.perf_counter()
    command = [sys.executable, "-c", f"{code}; {check}"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=60, env=os.environ | {"PYTHONPATH": str(root)})
    assert time.perf_counter() - start < 2
    assert "71.00" in (tmp_path / "table.md").read_text()


# Published figures

PUBLISHED = {
    # (data, model, rep, method): value; transcribed from METHODS, section 8, by hand
    ("imagenet", "repvgg_a0", "repvgg", "FP"): [72.41],
    ("imagenet", "repvgg_b0", "repvgg", "FP"): [75.14],
    ("imagenet", "repvgg_a1", "repvgg", "FP"): [74.46],
    ("imagenet", "repvgg_a2", "repvgg", "FP"): [76.48],
    ("imagenet", "resnet18", "none", "FP"): [71.16, 69.54, 71.21],
    ("imagenet", "resnet18", "acnet", "FP"): [70.53],
    ("imagenet", "resnet18", "dbb", "FP"): [70.99, 71.77],
    ("imagenet", "resnet18", "orepa", "FP"): [72.13],
    ("imagenet", "repvgg_a0", "orepa", "FP"): [73.04],
    ("imagenet", "resnet18", "dbb", "no batch norm in branches"): [71.35],
    ("imagenet", "repvgg_a0", "repvgg", "no batch norm in branches"): [71.15],
    ("imagenet", "repvgg_a0", "none", "FP"): [71.17],
    ("imagenet", "repvgg_b0", "qarepvgg", "V2, best epoch"): [74.84],
    ("imagenet", "repvgg_b0", "qarepvgg", "V2, last epoch"): [74.78],
    ("imagenet", "ResNet-18", "none", "TWN"): [61.80],
    ("imagenet", "ResNet-18B", "none", "TWN"): [65.3],
    ("imagenet", "ResNet-18", "none", "BPWN"): [57.50],
    ("imagenet", "ResNet-18B", "none", "BPWN"): [61.6],
    ("imagenet", "ResNet-18", "none", "FP"): [65.4],
    ("imagenet", "ResNet-18B", "none", "FP"): [67.6],
    ("imagenet", "ResNet-18", "none", "BWN"): [60.8],
    ("imagenet", "ResNet-18", "none", "XNOR-Net"): [51.2],
    ("imagenet", "AlexNet", "none", "BWN"): [56.8],
    ("imagenet", "AlexNet", "none", "XNOR-Net"): [43.3],
    ("imagenet", "ResNet-50", "none", "FP"): [76.4],
    ("imagenet", "ResNet-100", "none", "FP"): [78.0],
    ("imagenet", "ResNet-150", "none", "FP"): [78.8],
    ("imagenet", "ResNet-50", "none", "integer-only"): [74.9],
    ("imagenet", "ResNet-100", "none", "integer-only"): [76.6],
    ("imagenet", "ResNet-150", "none", "integer-only"): [76.7],
    ("imagenet", "ResNet-50", "none", "BWN"): [68.7],
    ("imagenet", "ResNet-50", "none", "TWN"): [72.5],
    ("imagenet", "ResNet-50", "none", "INQ"): [74.8],
    ("imagenet", "ResNet-50", "none", "FGQ"): [70.8],
    ("imagenet", "Inception v3, ReLU6", "none", "FP"): [78.4],
    ("imagenet", "Inception v3, ReLU", "none", "FP"): [78.3],
    ("imagenet", "Inception v3, ReLU6", "none", "integer-only"): [75.4, 75.0],
    ("imagenet", "Inception v3, ReLU", "none", "integer-only"): [74.2, 73.7],
    ("mnist", "the paper's network", "none", "TWN"): [99.35],
    ("cifar10", "the paper's network", "none", "TWN"): [92.56],
    ("mnist", "the paper's network", "none", "BNN"): [100 - 0.96, 98.60],
    ("cifar10", "the paper's network", "none", "BNN"): [100 - 11.40, 89.85],
    ("svhn", "the paper's network", "none", "BNN"): [100 - 2.80],
    ("mnist", "the paper's network", "none", "BinaryConnect"): [100 - 1.15],
    ("cifar10", "the paper's network", "none", "BinaryConnect"): [100 - 8.27],
    ("svhn", "the paper's network", "none", "BinaryConnect"): [100 - 2.15],
}


def test_published_figures_are_those_of_the_sources_and_no_others() -> None:
    found: dict[tuple[str, str, str, str], list[float]] = {}
    for figure in published():
        assert figure.source.startswith(("arXiv ", *(f"{name} repository, " for name in (
            "RepVGG", "DBB", "OREPA", "QARepVGG", "XNOR-Net", "BinaryNet", "BinaryConnect"))))  # fmt: skip
        found.setdefault((figure.data, figure.model, figure.rep, figure.method), []).append(figure.value)
    assert found.keys() == PUBLISHED.keys()
    for key, figures in PUBLISHED.items():
        assert found[key] == pytest.approx(figures), key


def test_published_figures_need_no_run(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "--published")
    assert lines_with(text, "repvgg_a0", "72.41", "RepVGG repository, table.PNG")
    rows = list(csv.DictReader(io.StringIO(printed(capsys, "--published", "--format", "csv"))))
    assert len(rows) == len(published())


def test_published_figures_stand_only_beside_the_same_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done(tmp_path / "a", {}, 70.0, 71.0)
    assert "72.41" in printed(capsys, tmp_path)
    done(tmp_path / "a", {"data.name": "digits"}, 70.0, 71.0)
    assert "72.41" not in printed(capsys, tmp_path)


def test_a_run_is_read_whole() -> None:
    run, notes = read_run(ROWS / "sweep" / "plain-8-0")
    assert run is not None and not notes
    assert (run.status, run.model, run.rep, run.mode, run.bits) == ("done", "repvgg_a0", "repvgg", "plain", (8, 8))
    assert run.numbers["metric.deployed"] == 71.0 and run.machine == "A Processor, 1 threads, torch 2.9.0"
    assert "fp.epochs" in run.options and not {"seed", "runtime.device", "data.root"} & run.options.keys()
