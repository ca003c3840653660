"""``repq report``: what the page holds, and that nothing in a run's names can change what the page is."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_runs import ROWS, config_of, done, failed, mode_and_bits, row_of, write_run

from repq_cli.cli import main
from repq_cli.report.page import render as rendering
from repq_cli.report.page.page import Making, Picture, page_of
from repq_cli.report.page.render import render, visible
from repq_cli.report.page.runs import again, all_runs, common_folder, not_finished
from repq_cli.report.page.summary import best_results, default_title
from repq_cli.report.reading import find_runs
from repq_cli.report.runs import Metric, Run
from repq_cli.report.sections import sections_of
from repq_cli.runs.sweep import PLAN

MAKING = Making("repq report", "0.1.0", "2026-01-01 12:00:00 UTC")
VOID = {"meta", "img"}


class Parsed(HTMLParser):
    """A page taken apart: its elements in order, its text, and what stands in each element of a kind."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.structure: list[Any] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.structure.append((tag, *(name for name, _ in attrs)))
        self.attributes.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.structure.append(f"/{tag}")

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.texts[tag][-1] += data

    @property
    def text(self) -> str:
        return " ".join(self.texts["body"][0].split())

    def values(self, tag: str, name: str) -> list[str | None]:
        return [attributes[name] for own, attributes in self.attributes if own == tag and name in attributes]


def page(runs: list[Run], notes: list[str], title: str | None = None, pictures: tuple[Picture, ...] = ()) -> str:
    return render(page_of(runs, notes, pictures, [], title, MAKING))


def written(out: Path, *arguments: object) -> Parsed:
    """The page that the command writes."""
    assert main(["report", *map(str, arguments), "--out", str(out)]) == 0
    return Parsed(out.read_text())


# What the page holds


def test_the_page_holds_tables_figures_runs_failures_configuration_environment_and_origin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parsed = written(tmp_path / "page.html", ROWS, "--title", "Of <b>")
    said = capsys.readouterr().out
    assert str(tmp_path / "page.html") in said and "kB): 34 runs, " in said
    assert [title for tag in ("title", "h1") for title in parsed.texts[tag]] == ["Of <b>"] * 2
    for words in (
        "30 done, 2 failed, 2 unfinished",
        "8 bit: 72.16 ± 0.37 % by repvgg_a0 with repvgg, RepQ-BN (fp.epochs=120), 2 seeds, 0.11 above its FP net.",
        "×2, 8 bit: 36.75 dB by ecbsr_m4c8",
        "The loss became nan. At step 12.",
        "table_rows/two_bits",
        "their folders hold no config.yaml",
        "epochs=30 lr=0.01",
        "A Processor",
        "repq report ",
    ):
        assert words in parsed.text
    captions = " | ".join(parsed.texts["caption"])
    for title in (
        "Overview",
        "Classification",
        "Super-resolution ×2",
        "Time of a training step",
        "4 runs without",
        "34 runs, below",
    ):
        assert title in captions


def test_links_lead_to_sections_and_no_name_is_given_twice(tmp_path: Path) -> None:
    parsed = Parsed(page(*find_runs([ROWS])))
    names = [attributes["id"] for _, attributes in parsed.attributes if "id" in attributes]
    assert len(set(names)) == len(names)
    assert {f"#{name}" for name in names} >= set(parsed.values("a", "href"))
    assert 0 < len(set(parsed.values("div", "aria-labelledby")) & set(names)) == len(parsed.texts["table"])


def test_every_line_has_as_many_cells_as_headings_and_means_sort_by_the_mean() -> None:
    found, notes = find_runs([ROWS])
    content = page_of(found, notes, [], [], None, MAKING)
    grids = [grid for chapter in content.chapters for grid in chapter.grids]
    for grid in (*grids, content.runs, content.not_finished, *content.configurations, content.environments):
        assert grid is not None
        assert all(len(line) == len(grid.headings) for line in grid.lines)
        assert not grid.groups or sum(span for _, span in grid.groups) == len(grid.headings)
    overview = grids[0]
    column = [heading.text for heading in overview.headings].index("Deployed")
    (cell,) = {line[column] for line in overview.lines if line[column].text == "70.66 ± 0.09 (2)"}
    assert cell.value == pytest.approx(70.665)


def test_the_same_rows_give_the_same_page_in_any_order() -> None:
    found, notes = find_runs([ROWS])
    shuffled = list(found)
    random.Random(0).shuffle(shuffled)
    assert page(shuffled, notes) == page(found, notes)


def test_a_single_run_and_only_failed_runs(tmp_path: Path) -> None:
    done(tmp_path / "one", {}, 70.0, 71.0)
    parsed = written(tmp_path / "one.html", tmp_path / "one")
    assert parsed.texts["h1"] == ["1 run of repvgg_a0 on imagenet"]
    assert "without a result" not in parsed.text and "The run, below" in parsed.text
    failed(tmp_path / "failed" / "0", {}, "Out of\nmemory.")
    failed(tmp_path / "failed" / "1", {"seed": 1}, "Out of\nmemory.")
    parsed = written(tmp_path / "failed.html", tmp_path / "failed")
    assert "2 failed" in parsed.text and "Best deployed" not in parsed.text
    assert parsed.texts["pre"][:2] == ["Out of\nmemory."] * 2
    assert "Failed: " in parsed.text and "Out of." in parsed.text  # notes have the first line of an error


def test_runs_stand_in_the_order_of_their_numbers_below_the_folder_that_they_share(tmp_path: Path) -> None:
    for number in (10, 9, 2):
        done(tmp_path / "sweep" / str(number), {"seed": number}, 70.0, 71.0)
    found, _ = find_runs([tmp_path])
    grid = all_runs(found)
    assert [line[0].text for line in grid.lines] == ["2", "9", "10"]
    assert grid.caption == f"3 runs, below {tmp_path}/sweep, imagenet, top1 (%) on test"
    assert "Data" not in [heading.text for heading in grid.headings]
    assert common_folder([*found, replace(found[0], folder="here/3")]) == ""
    assert common_folder([replace(found[0], folder=".")]) == ""


def test_figures_say_nothing_twice() -> None:
    found, _ = find_runs([ROWS / "short"])
    content = page_of(found, ["said"], [Picture("A", "B", "<svg/>")], ["said", "only here"], None, MAKING)
    assert content.picture_notes == ("only here",) and "said" in content.notes
    parsed = Parsed(render(content))
    assert parsed.values("img", "src") == ["data:image/svg+xml;base64,PHN2Zy8+"]
    assert parsed.values("img", "alt") == ["B"] and parsed.texts["figcaption"] == ["A. B"]


def test_checks_stand_beside_their_run(tmp_path: Path) -> None:
    config = config_of({})
    checks = {"merge_max_abs": 1.5e-6, "freeze_max_abs": 0.0, "freeze_top1_agreement": 100.0}
    write_run(tmp_path / "a", config, row_of(config, 70.0, 71.0) | {"checks": checks})
    parsed = written(tmp_path / "page.html", tmp_path)
    assert parsed.texts["td"].count("1.5e-06") == parsed.texts["td"].count("100 %") == 1
    assert "Checks" in parsed.texts["th"]


def test_a_run_is_run_again_by_its_folder_its_sweep_or_not_at_all(tmp_path: Path) -> None:
    stopped = failed(tmp_path / "a b" / "0", {}, "x")
    row = {"status": "failed", "model": "m", "rep": "r", "mode": "auto", "quant": {"weight_bits": 8, "act_bits": 8}}
    write_run(tmp_path / "sweep" / "1", None, row)
    write_run(tmp_path / "lost", None, row)
    (tmp_path / "sweep" / PLAN).write_text("{}")
    found, _ = find_runs([tmp_path])
    commands = {Path(run.folder).name: again(run) for run in found}
    assert commands == {
        "0": f"repq train 'resume={stopped}'",
        "1": f"repq train resume={tmp_path / 'sweep'}",
        "lost": "",
    }
    grid = not_finished(found)
    assert grid is not None and "never written" in grid.lines[1][-1].text
    written(tmp_path / "page.html", tmp_path)


def test_the_best_is_named_for_each_width_and_scale(tmp_path: Path) -> None:
    done(tmp_path / "a", mode_and_bits("repq_bn", 8, 8), 70.0, 71.5)
    done(tmp_path / "b", mode_and_bits("merged", 8, 8), 70.0, 71.501)
    done(tmp_path / "c", mode_and_bits("merged", 4, 4), 70.0, 69.0)
    failed(tmp_path / "d", mode_and_bits("merged", 2, 2), "x")
    failed(tmp_path / "e", mode_and_bits("merged", 4, 4, seed=1), "x")
    (section,) = sections_of(find_runs([tmp_path])[0])
    assert best_results(section) == [
        "8 bit: 71.50 % by repvgg_a0 with repvgg, Merged, 1 seed, 1.50 above its FP net; 1 other reaches the same.",
        "4 bit: 69.00 % by repvgg_a0 with repvgg, Merged, 1 seed, 1.00 below its FP net.",
    ]


def test_many_models_and_data_sets_are_counted_in_the_title() -> None:
    found, _ = find_runs([ROWS])
    assert default_title(found) == "34 runs of 3 models on 3 data sets"
    assert default_title([replace(found[0], data=None)]) == f"1 run of {found[0].model}"


# Hostile names

NAMES = (
    "<script>alert(1)</script>",
    "</script><script>",
    "</style>",
    "<!--",
    "]]>",
    "\" onload='x'",
    "{{ 7 * 7 }}{% raw %}",
    "&lt;&#60;",
    "\u202ertl\u2066",
    "\ud800\udcff",
    "\x00\x1b[31m\r\n",
    "`$(x)`",
)
names = st.lists(st.sampled_from(NAMES) | st.text(max_size=5), min_size=1, max_size=4).map(
    lambda parts: "x".join(["", *parts])
)


def hostile_page(name: str) -> str:
    """A page in which everything that a run's files can say is ``name``."""
    changed = []
    for run in find_runs([ROWS / "sweep" / "plain-8-0", ROWS / "sweep" / "merged-4-1"])[0]:
        metric = run.metric and Metric(name, name, True)
        said = {"model": name, "rep": name, "mode": name, "data": name, "error": run.error and name}
        options = {**run.options, f"fp.{name.replace('.', '')}": name}  # a dot begins a section
        machine = {"machine": name, "environment": {"cpu": name, name: name}, "fp_file": name, "finished": name}
        changed.append(replace(run, folder=f"{name}/{run.folder}", metric=metric, options=options, **said, **machine))
    picture = Picture(name, name, f"<svg xmlns='http://www.w3.org/2000/svg'><text>{name}</text></svg>")
    making = Making(name, name, name)
    return render(page_of(changed, [name], [picture], [name], name, making))


@given(names)
@settings(max_examples=40, deadline=None)
def test_no_name_changes_the_elements_of_the_page(name: str) -> None:
    text = hostile_page(name)
    text.encode()
    parsed, plain = Parsed(text), Parsed(hostile_page("x"))
    assert parsed.structure == plain.structure
    for tag in ("style", "script"):
        assert parsed.texts[tag] == plain.texts[tag]
    assert parsed.texts["h1"] == [visible(name)]
    assert parsed.values("meta", "content")[0] == plain.values("meta", "content")[0]


def test_a_policy_allows_nothing_but_the_pages_own_style_script_and_images() -> None:
    parsed = Parsed(page(*find_runs([ROWS])))
    policy = str(parsed.values("meta", "content")[0]).split("; ")
    (style,), (script,) = parsed.texts["style"], parsed.texts["script"]
    assert policy[:4] == [
        "default-src 'none'",
        "img-src data:",
        f"style-src '{rendering._hash(style)}'",
        f"script-src '{rendering._hash(script)}'",
    ]
    assert not [name for _, attributes in parsed.attributes for name in attributes if name.startswith("on")]
    assert not parsed.values("link", "href") and all(str(link).startswith("#") for link in parsed.values("a", "href"))


def test_folders_with_any_bytes_and_damaged_files_make_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff<i>\n\xe2\x80\xae")), {"model.name": "<u>"}, 70.0, 71.0)
    write_run(tmp_path / "bad", "{", "[" * 9999, "3")
    config = config_of({"seed": 3})
    env = {"gpus": [3, None], "packages": 3, "git": {"changed": True}, "cpu": ["x"]}
    row = row_of(config, 70.0, 71.0) | {"checks": {"merge_max_abs": "none"}, "lineage": 3}
    write_run(tmp_path / "odd", config, row, env)
    parsed = written(tmp_path / "page.html", tmp_path)
    assert "\\udcff<i>" in parsed.text and "\\u202e" in parsed.text
    assert "bad is left out" in parsed.text and "checks.merge_max_abs is 'none'" in parsed.text
    assert "i" not in parsed.texts and "u" not in parsed.texts
    assert capsys.readouterr().err == ""


# The command


def complaint(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["report", *map(str, arguments)]) == 3
    said = capsys.readouterr().err
    assert said.startswith("repq: ") and "Traceback" not in said
    return said


def test_what_cannot_be_reported_or_written_is_said(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "run repq report where you ran repq train" in complaint(capsys)
    (in_folder / "outputs").mkdir()
    assert "There are no runs to report on" in complaint(capsys)
    assert "nowhere does not exist" in complaint(capsys, "nowhere")
    done(in_folder / "a", {}, 70.0, 71.0)
    for out in (".", in_folder):
        assert "cannot be written" in complaint(capsys, "a", "--out", out)
    assert main(["report", "a", "--out", "new/folder/page.html"]) == 0 and Path("new/folder/page.html").is_file()
    assert "cannot be made" in complaint(capsys, "a", "--out", "new/folder/page.html/below.html")
    (in_folder / "outputs" / "reports").write_text("")
    assert "--out FILE" in complaint(capsys, "a")
    assert main(["report", "--format", "pdf"]) == 2


def test_pages_without_a_name_get_one_each(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done(in_folder / "outputs" / "a", {}, 70.0, 71.0)
    assert [main(["report"]) for _ in range(3)] == [0, 0, 0]
    pages = sorted((in_folder / "outputs" / "reports").iterdir())
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("outputs/reports/2")]
    assert len(pages) == len(printed) == 3
    assert {line.split()[0] for line in printed} == {str(path.relative_to(in_folder)) for path in pages}


def test_without_matplotlib_the_page_says_how_to_get_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    parsed = written(tmp_path / "page.html", ROWS)
    assert "There are no figures. This needs matplotlib: pip install 'repq[plot]'." in parsed.text
    assert "pip install 'repq[plot]'" in capsys.readouterr().out
    assert "img" not in parsed.texts


def test_neither_torch_nor_hydra_is_imported_and_other_commands_do_without_jinja(tmp_path: Path) -> None:
    report = f"main(['report', {str(ROWS)!r}, '--out', {str(tmp_path / 'page.html')!r}])"
    table = f"main(['table', {str(ROWS)!r}, '--out', {str(tmp_path / 'table.md')!r}])"
    code = (
        "import sys; from repq_cli.cli import main\n"
        f"assert {table} == 0 and not {{'jinja2', 'matplotlib'}} & sys.modules.keys()\n"
        f"assert {report} == 0 and not {{'torch', 'hydra', 'omegaconf'}} & sys.modules.keys()"
    )
    root = str(Path(__file__).resolve().parents[1])
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=os.environ | {"PYTHONPATH": root})
