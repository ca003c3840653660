"""``repq table`` and what people give it: hostile folders, wrong arguments, many rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from synthetic_runs import (
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

from repq_cli.cli import main
from repq_cli.report.document import TABLES, document
from repq_cli.report.reading import find_runs, read_run
from repq_cli.report.render.data import as_csv, as_json
from repq_cli.report.render.latex import latex
from repq_cli.report.render.markdown import markdown

# Hostile folders


NOT_ROWS = [
    "",
    "[]",
    "3",
    "null",
    '"text"',
    "{",
    '{"status": "done"',
    "\x00",
    "{}",
    '{"model": []}',
    "[" * 100_000,
    "&a {b: *a}",
    "? {} : 3",
]


def test_what_is_no_row_is_said_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], subtests: pytest.Subtests
) -> None:
    done(tmp_path / "good", {}, 70.0, 71.0)
    for content in NOT_ROWS:
        with subtests.test(content[:20]):
            write_run(tmp_path / "bad", None, content)
            write_run(tmp_path / "worse", content, content, content)
            text = overview(capsys, tmp_path)
            assert "71.00" in text
            assert lines_with(text, str(tmp_path / "bad"))


def test_what_is_no_number_counts_as_not_measured(tmp_path: Path, subtests: pytest.Subtests) -> None:
    for value in ["97.1", None, True, [], float("nan"), float("inf"), 10**400, 1e200]:
        for key in ["metric.deployed", "metric.fp", "size.bytes_packed", "cost.bops", "time.qat_step_ms"]:
            with subtests.test(value=str(value), key=str(key)):
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


def test_rows_of_another_schema_do_no_harm(tmp_path: Path, subtests: pytest.Subtests) -> None:
    for change in [
        {"metrics": 3},
        {"metrics": [3, {"value": "x"}]},
        {"metric": "top1"},
        {"size": []},
        {"lineage": 1},
        {"seed": "0"},
        {"seed": None},
        {"quant": {}},
        {"status": "well"},
        {"status": ["done"]},
        {"mode": 3},
        {"data": None},
        {"error": 3},
    ]:
        for form in [markdown, latex, as_csv, as_json]:
            with subtests.test(change=str(change), form=str(form)):
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


def test_text_that_no_encoding_has_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failed(tmp_path / "a", {}, "\ud800 failed")
    assert "\\\\ud800 failed." in overview(capsys, tmp_path)


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
    assert main(["table", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("repq: repq table: ") and arguments[0] in said


def test_the_ending_of_a_file_says_its_format(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done(in_folder / "outputs" / "a", {}, 70.0, 71.0)
    for name, beginning in (("a.csv", "table,"), ("a.tex", "%"), ("a.json", "{"), ("a.md", "## ")):
        printed(capsys, "outputs", "--out", name)
        assert Path(name).read_text().startswith(beginning), Path(name).read_text()[:80]


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
    before = os.times()
    command = [sys.executable, "-c", f"{code}; {check}"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=60, env=os.environ | {"PYTHONPATH": str(root)})
    after = os.times()  # of the processor, whatever else the machine does
    assert after.children_user + after.children_system - before.children_user - before.children_system < 2
    assert "71.00" in (tmp_path / "table.md").read_text()


def test_a_run_is_read_whole() -> None:
    run, notes = read_run(ROWS / "sweep" / "plain-8-0")
    assert run is not None and not notes
    assert (run.status, run.model, run.rep, run.mode, run.bits) == ("done", "repvgg_a0", "repvgg", "plain", (8, 8))
    assert run.numbers["metric.deployed"] == 71.0 and run.machine == "A Processor, 1 thread, torch 2.9.0"
    assert "fp.epochs" in run.options and not {"seed", "runtime.device", "data.root"} & run.options.keys()


def test_a_file_of_runs_gives_the_tables_of_their_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Byte for byte, but for what names the runs; damaged lines are named and left out."""
    for number, mode in enumerate(("plain", "merged", "repq_bn")):
        changes = mode_and_bits(mode, 4, 4, number % 2) | {"data.root": "/a/place/of/mine"}
        done(tmp_path / "study" / mode, changes, 70.0, 71.0 + number)
    kept = tmp_path / "study.jsonl"
    assert printed(capsys, tmp_path / "study", "--format", "jsonl", "--out", kept) == ""
    assert "/a/place" not in kept.read_text() and kept.read_text().count("\n") == 3
    assert printed(capsys, kept) == printed(capsys, tmp_path / "study")
    assert printed(capsys, kept, "--format", "jsonl").count("\n") == 3
    for name, text in (
        ("summary.json", '{"a": NaN, "b": [Infinity], "c": null}'),
        ("config.yaml", "a: 2026-01-01\n3: {}"),
    ):
        file = tmp_path / "odd" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    (odd,) = printed(capsys, tmp_path / "odd", "--format", "jsonl").splitlines()
    assert json.loads(odd, parse_constant=pytest.fail)["config"] == {"a": "2026-01-01", "3": {}}
    kept.write_text(kept.read_text() + '{"run": "\\ud800"}\n{"run": "a\\u0000"}\n{"run": 3}\n[\n' + "[" * 100_000)
    (tmp_path / "study").rename(tmp_path / "moved")
    found, notes = find_runs([tmp_path])  # a folder of such files, too, beside runs in folders
    assert len(found) == 6 and sum("is no run" in note for note in notes) == 5
