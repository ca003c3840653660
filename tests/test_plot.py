"""``repq plot``: every figure, deterministic and safe bytes, and what people's folders may hold."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_plots import (
    bench_rows,
    named,
    step_rows,
    sweep,
    texts,
    write_bench,
    write_crops,
    write_log,
    write_weights,
)
from synthetic_runs import SUPER_RESOLUTION, done, mode_and_bits

from repq_cli.cli import main
from repq_cli.modes.catalogue import MODES
from repq_cli.report.figures import crops, curves
from repq_cli.report.figures.catalogue import FIGURES, Drawing, drawings
from repq_cli.report.figures.labels import Box, place, square_about
from repq_cli.report.figures.material import Material, telling_runs
from repq_cli.report.figures.outliers import collapsed_below
from repq_cli.report.figures.style import log_ticks, plain
from repq_cli.report.reading import find_runs
from repq_cli.report.sections import sections_of

pytestmark = pytest.mark.xdist_group("plot")  # one worker draws what its tests look at

SIZES = st.tuples(st.floats(1, 40), st.floats(1, 10))
POINTS = st.tuples(st.floats(0, 200), st.floats(0, 200))


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Something for each figure."""
    top = tmp_path_factory.mktemp("everything")
    sweep(top / "sweep")
    write_weights(top / "sweep" / "repvgg-repq_bn-4-0")
    write_bench(top / "bench" / "20260101-120000")
    write_bench(top / "bench" / "training", step_rows(), bench="train", batch=64, size=32)
    for bits in (8, 4):
        write_crops(done(top / f"pictures-{bits}", mode_and_bits("repq", bits, bits) | SUPER_RESOLUTION, 36.5, 36.0))
    return top


@pytest.fixture(scope="module")
def all_drawn(everything: Path) -> tuple[list[Drawing], list[str]]:
    return drawings([everything])


# What is drawn


def test_a_figure_holds_so_many_runs_and_says_how_many_it_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One more than each limit: 9 pictures of crops, 6 figures of single runs, 24 rows of curves."""
    shown: list[int] = []
    monkeypatch.setattr(crops, "_pictures", lambda runs: shown.append(len(runs)) or [])
    monkeypatch.setattr(crops, "_drawing", lambda *arguments: None)
    monkeypatch.setattr(curves, "_drawing", lambda section, rows, dashes: rows)
    for index in range(10):
        run = done(tmp_path / f"crops/{index}", {**mode_and_bits("repq", index + 1, 8), **SUPER_RESOLUTION}, 36.5, 36.0)
        write_crops(run)
    for index in range(25):
        write_log(done(tmp_path / f"curves/{index}", {"model.name": f"net{index}"}, 90.0, 91.0))
    pictures, networks = (find_runs([tmp_path / folder])[0] for folder in ("crops", "curves"))
    _, notes = crops.crops(Material(sections_of(pictures), []))
    assert shown == [9] and any("1 of 10 runs" in note for note in notes)
    rows, notes = curves.curves(Material(sections_of(networks), []))
    assert sum(map(len, rows)) == 24 and any("1 of 25 lines" in note for note in notes)  # type: ignore[arg-type]
    chosen, notes = telling_runs(networks, lambda run: True, "layers")
    assert len(chosen) == 6 and "6 of 25 runs" in notes[0]


@pytest.mark.parametrize("figure", FIGURES)
def test_every_figure_is_drawn_where_there_is_something_to_show(
    figure: str, all_drawn: tuple[list[Drawing], list[str]]
) -> None:
    own = named(all_drawn[0], figure)
    assert own and all(drawing.title and drawing.caption.endswith(".") for drawing in own)
    assert own[0].png(60).startswith(b"\x89PNG")


def test_names_are_unique_and_figures_are_whole(all_drawn: tuple[list[Drawing], list[str]]) -> None:
    drawn, notes = all_drawn
    assert len({drawing.name for drawing in drawn}) == len(drawn)
    assert not [note for note in notes if "cannot" in note]


def test_bits_shows_means_over_seeds_of_each_mode(tmp_path: Path) -> None:
    (drawing,), _ = drawings([sweep(tmp_path)], ["bits"])
    (axes,) = drawing.figure.axes
    heights = {container[0].get_color(): list(container[0].get_ydata()) for container in axes.containers}
    assert heights[MODES["repq_bn"].mark.colour] == pytest.approx([90.15, 92.15])
    assert heights[MODES["plain"].mark.colour] == pytest.approx([88.15, 90.15])
    bars = axes.containers[0][2][0].get_segments()
    assert bars[0][1][1] - bars[0][0][1] == pytest.approx(2 * 0.3 / math.sqrt(2))


def test_pareto_names_the_nets_on_the_front(tmp_path: Path) -> None:
    (drawing,), _ = drawings([sweep(tmp_path)], ["pareto"])
    words = texts(drawing)
    assert words.count("repvgg RepQ-BN") == 2
    assert {"repvgg_a0, 8 bit", "repvgg_a0, 4 bit"} <= set(words)
    assert "bit operations for one image" in words and "imagenet: top1 on test (%)" in words


def test_what_collapsed_is_written_at_the_edge(tmp_path: Path) -> None:
    sweep(tmp_path)
    for bits in (8, 4):
        done(tmp_path / f"ptq-{bits}", mode_and_bits("ptq", bits, bits), 92.0, 1.0)
    drawn, _ = drawings([tmp_path], ["bits", "pareto"])
    assert all(any("1.00 ↓" in text for text in texts(drawing)) for drawing in drawn)
    assert all(drawing.figure.axes[0].get_ylim()[0] > 80 for drawing in drawn)


def test_what_few_bits_cost_all_modes_stays_in_sight(tmp_path: Path) -> None:
    for bits, value in ((8, 99.0), (4, 98.9), (2, 98.5), (1, 60.0)):
        done(tmp_path / str(bits), mode_and_bits("repq", bits, bits), 99.5, value)
    (drawing,), _ = drawings([tmp_path], ["bits"])
    assert drawing.figure.axes[0].get_ylim()[0] < 60


def test_cheap_nets_on_the_front_are_never_below_the_axis(tmp_path: Path) -> None:
    sweep(tmp_path)
    done(tmp_path / "binary", mode_and_bits("plain", 1, 1), 92.0, 60.0)
    (drawing,), _ = drawings([tmp_path], ["pareto"])
    assert drawing.figure.axes[0].get_ylim()[0] < 60
    assert texts(drawing).count("Plain") == 2  # in the legend, and at the net


def test_curves_begin_at_epoch_1_and_average_seeds(tmp_path: Path) -> None:
    for seed, best in ((0, 90.0), (1, 94.0)):
        write_log(done(tmp_path / str(seed), mode_and_bits("repq_bn", 4, 4, seed), 92.0, 90.0), best=best)
    (drawing,), _ = drawings([tmp_path], ["curves"])
    validation = drawing.figure.axes[3].get_lines()[0]
    assert list(validation.get_xdata()) == [1, 2, 3]
    assert list(validation.get_ydata()) == pytest.approx([62.0, 77.0, 82.0])


def test_runs_that_reuse_an_fp_stage_and_runs_without_one_are_drawn(tmp_path: Path) -> None:
    write_log(done(tmp_path / "a", mode_and_bits("repq_bn", 4, 4), 92.0, 90.0), fp=0)
    (drawing,), _ = drawings([tmp_path], ["curves"])
    assert texts(drawing).count("no log") == 2
    write_log(tmp_path / "a", fp=1, qat=1)
    (drawing,), _ = drawings([tmp_path], ["curves"])
    assert [line.get_marker() for axes in drawing.figure.axes for line in axes.get_lines()] == ["o", "o"] * 2


def test_steps_are_relative_to_the_first_epoch(tmp_path: Path) -> None:
    write_log(done(tmp_path / "a", mode_and_bits("repq_bn", 4, 4), 92.0, 90.0))
    (drawing,), _ = drawings([tmp_path], ["steps"])
    weights = drawing.figure.axes[0].get_lines()
    assert list(weights[1].get_ydata()) == pytest.approx([1.0, 1.1, 1.2])
    assert {"blocks.0", "classifier", "taps.0", "classifier_tap"} <= set(texts(drawing))


def test_of_many_runs_one_of_each_width_shows_its_steps(tmp_path: Path) -> None:
    drawn, notes = drawings([sweep(tmp_path)], ["steps"])
    assert [drawing.name for drawing in drawn] == [f"steps-repvgg-a0-repvgg-repq-bn-{bits}-bit-0" for bits in (8, 4)]
    assert [note for note in notes if "2 of 12 runs" in note and "repq plot RUN --figure steps" in note]


def test_weights_show_the_first_the_widest_and_the_last_layer(tmp_path: Path) -> None:
    write_weights(done(tmp_path / "a", mode_and_bits("repq_bn", 4, 4), 92.0, 90.0))
    (drawing,), _ = drawings([tmp_path], ["weights"])
    titles = [axes.get_title(loc="left") for axes in drawing.figure.axes]
    assert titles[::2] == ["stem: branches", "stages.0.0: branches", "classifier: branches"]
    codes = drawing.figure.axes[3].patches
    assert sum(bar.get_height() for bar in codes) == pytest.approx(1.0)
    assert [bar.get_x() + bar.get_width() / 2 for bar in codes] == pytest.approx(range(-8, 8))


def test_crops_stand_beside_each_other_with_their_psnr(all_drawn: tuple[list[Drawing], list[str]]) -> None:
    (drawing,) = named(all_drawn[0], "crops")
    words = texts(drawing)
    assert [axes.get_title() for axes in drawing.figure.axes] == [
        "original", "bicubic", "FP", "RepQ, 8 bit", "RepQ, 4 bit"
    ]  # fmt: skip
    assert words.count("36.25 dB") == 2 and "33.00 dB" in words
    assert "over all pictures of the set" in drawing.caption
    assert drawing.svg().count("data:image/png;base64,") == 5


def test_latency_has_a_line_for_each_engine_over_widths(all_drawn: tuple[list[Drawing], list[str]]) -> None:
    (drawing,) = named(all_drawn[0], "latency")
    (axes,) = drawing.figure.axes
    lines = sorted(list(line.get_xdata()) for line in axes.get_lines())
    assert lines == [pytest.approx([cost * width for width in (0.25, 0.5, 1.0)]) for cost in (1.1, 2.0, 3.0)]
    assert {"int8, ONNX Runtime", "merged, ONNX Runtime", "merged, PyTorch", "×0.25"} <= set(texts(drawing))


def test_speed_writes_the_ratio_to_the_merged_net_in_onnx_runtime(
    all_drawn: tuple[list[Drawing], list[str]], tmp_path: Path
) -> None:
    (drawing,) = named(all_drawn[0], "speed")
    words = texts(drawing)
    assert {"1.10 (1.8×)", "6.00 (0.33×)", "2.00 (1×)", "batch 1", "batch 8"} <= set(words)
    rows = [row for row in bench_rows(widths=(1.0,)) if row["engine"] == "torch"]
    (lone,), notes = drawings([write_bench(tmp_path, rows)], ["speed"])
    assert "3.00" in texts(lone) and [note for note in notes if "lack a ratio" in note]


def test_training_writes_the_ratio_to_plain_full_precision_of_its_column(
    all_drawn: tuple[list[Drawing], list[str]],
) -> None:
    (drawing,) = named(all_drawn[0], "training")
    assert {"2.00 (1.00)", "3.00 (1.50)", "1.00 (1.00)", "2.50 (2.50)", "compiled", "Plain QAT w4a4"} <= set(
        texts(drawing)
    )
    assert "64 images of 32×32, A Processor, 2 threads" in drawing.caption


def test_latency_mixes_neither_shapes_nor_widths_and_says_what_it_drops(tmp_path: Path) -> None:
    rows = [row for row in bench_rows(widths=(1.0,)) if row["net"] == "int8"]
    rows += [row | {"bits": [4, 4], "run": "b"} for row in rows] + [row | {"input_shape": [3, 64, 64]} for row in rows]
    drawn, notes = drawings([write_bench(tmp_path, [*rows, rows[0]])], ["latency"])
    assert [drawing.figure.axes[0].get_xlabel() for drawing in drawn] == [
        "milliseconds for an image of 3×64×64", "milliseconds for an image of 3×224×224"
    ]  # fmt: skip
    assert {"8 bit, int8, ONNX Runtime", "4 bit, int8, ONNX Runtime"} <= set(texts(drawn[1]))
    assert [note.partition(": ")[2] for note in notes] == [
        "1 measurements at other batches than 1 are left out.",
        "2 measurements at other batches than 1 are left out.",
        "1 older measurements of nets that were measured again are left out.",
    ]


def test_speed_tells_runs_of_one_net_apart(tmp_path: Path) -> None:
    rows = bench_rows(widths=(1.0,))
    rows += [row | {"run": "outputs/train/again"} for row in rows]
    (drawing,), _ = drawings([write_bench(tmp_path, rows)], ["speed"])
    words = texts(drawing)
    assert [word.split(",")[0] for word in words if "RepQ-BN" in word] == ["mobilenet-1.0", "again"] * 2
    assert words.count("6.00 (0.33×)") == 2


def test_modes_differ_in_colour_marker_and_line() -> None:
    marks = [mode.mark for mode in MODES.values()]
    assert all(len({mark[field] for mark in marks}) == len(marks) for field in range(3))


# Bytes


@pytest.mark.no_cover  # tracing would cost more than it tells
def test_the_same_content_gives_the_same_bytes(everything: Path, all_drawn: tuple[list[Drawing], list[str]]) -> None:
    again, notes = drawings([everything])
    assert notes == all_drawn[1]
    for first, second in zip(all_drawn[0], again, strict=True):
        assert first.name == second.name
        assert first.svg() == second.svg()
    assert all_drawn[0][0].png() == again[0].png() == again[0].png()
    assert again[0].svg() == again[0].svg()


def test_svgs_are_well_formed_with_ids_of_their_own_and_nothing_from_elsewhere(
    all_drawn: tuple[list[Drawing], list[str]],
) -> None:
    seen: set[str] = set()
    for drawing in all_drawn[0]:
        text = drawing.svg()
        assert text.startswith("<svg") and "DOCTYPE" not in text and "<metadata" not in text
        root = ElementTree.fromstring(text)
        assert root.tag.endswith("svg") and root.attrib["role"] == "img"
        assert drawing.caption in root.attrib["aria-label"]
        ids = {element.attrib["id"] for element in root.iter() if "id" in element.attrib}
        assert not ids & seen
        seen |= ids
        links = [value for element in root.iter() for key, value in element.attrib.items() if key.endswith("href")]
        assert all(link.removeprefix("#") in ids or link.startswith("data:image/png") for link in links)


# Parts


@given(st.lists(st.tuples(POINTS, SIZES), max_size=12))
def test_labels_cover_neither_points_nor_each_other(wanted: list[tuple[Any, Any]]) -> None:
    anchors, sizes = [point for point, _ in wanted], [size for _, size in wanted]
    frame = Box(0, 0, 200, 200)
    taken = [square_about(*point, 2.5) for point in anchors]
    boxes = [spot.box for spot in place(anchors, sizes, taken, frame) if spot is not None]
    assert all(frame.holds(box) for box in boxes)
    assert not any(box.overlaps(other) for box in boxes for other in taken)
    assert not any(box.overlaps(other) for index, box in enumerate(boxes) for other in boxes[:index])


@given(st.floats(-30, 30), st.floats(0.3, 60))
def test_ticks_are_few_and_inside(exponent: float, decades: float) -> None:
    low, high = 10**exponent, 10 ** (exponent + decades)
    ticks = log_ticks(low, high)
    assert len(ticks) <= 7 and all(low <= tick <= high for tick in ticks)
    assert ticks == sorted(ticks) and len(ticks) > (decades > 1)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=30))
def test_at_most_a_third_counts_as_collapsed(values: list[float]) -> None:
    low = collapsed_below(values)
    assert low in values
    assert sum(value < low for value in values) <= len(values) // 3


@given(st.text(max_size=60))
def test_text_is_one_line_that_the_font_has(text: str) -> None:
    shown = plain(text)
    assert len(shown) <= 44 and shown.isprintable() and shown == plain(shown)


# The command


def drawn_by(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    capsys.readouterr()
    assert main(["plot", *map(str, arguments)]) == code
    out, err = capsys.readouterr()
    return out if code == 0 else err


def test_files_are_written_and_named(everything: Path, in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(everything / "sweep", "outputs/sweep")
    text = drawn_by(capsys, "--figure", "pareto,bits", "--figure", "steps")
    files = [Path(line) for line in text.splitlines() if not line.startswith("- ")]
    assert len(files) == 8 and all(file.is_file() and file.parent.parent == Path("outputs/plots") for file in files)
    assert "- steps is drawn for 2 of 12 runs" in text
    text = drawn_by(capsys, "outputs/sweep", "--figure", "bits", "--format", "svg", "--out", "paper/figures")
    assert text.splitlines() == ["paper/figures/bits-imagenet-top1-test.svg"]
    assert Path("paper/figures/bits-imagenet-top1-test.svg").read_text().startswith("<svg")


def test_mistakes_are_answered_with_the_fix(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "run repq plot where you ran repq train" in drawn_by(capsys, code=3)
    assert "There is no figure 'paretto'; did you mean 'pareto'?" in drawn_by(capsys, "--figure", "paretto", code=2)
    assert "There is no format 'pdf'; the formats are png, svg." in drawn_by(capsys, "--format", "png,pdf", code=2)
    assert "nowhere does not exist" in drawn_by(capsys, "nowhere", code=3)
    done(in_folder / "outputs" / "a", {}, 70.0, 71.0)
    said = drawn_by(capsys, "--figure", "crops", code=3)
    assert "There is nothing for the figure crops: it needs super-resolution runs with crops/" in said
    done(in_folder / "outputs" / "b", mode_and_bits("plain", 4, 4), 70.0, 71.0)
    (in_folder / "file").write_text("")
    assert "cannot be made" in drawn_by(capsys, "--out", "file/below", code=3)


def test_help_names_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["plot", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in FIGURES)


def run_alone(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).resolve().parents[1])
    environment = os.environ | {"PYTHONPATH": root}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )


def test_neither_torch_nor_hydra_nor_pyplot_are_imported(tmp_path: Path) -> None:
    sweep(tmp_path, seeds=1)
    code = (
        "import sys; from repq_cli.cli import main; code = main(['plot', '.', '--out', 'figures'])\n"
        "assert code == 0 and not {'torch', 'hydra', 'omegaconf', 'matplotlib.pyplot'} & sys.modules.keys()"
    )
    result = run_alone(code, tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "figures/bits-imagenet-top1-test.png").is_file()


def test_without_matplotlib_the_extra_is_named(tmp_path: Path) -> None:
    done(tmp_path / "a", {}, 70.0, 71.0)
    code = "import sys; sys.modules['matplotlib'] = None; from repq_cli.cli import main; sys.exit(main(['plot', '.']))"
    result = run_alone(code, tmp_path)
    assert result.returncode == 3
    assert "This needs matplotlib: " in result.stderr and "pip install 'repq[plot]'." in result.stderr


def test_the_users_own_settings_change_nothing(tmp_path: Path) -> None:
    import matplotlib

    sweep(tmp_path, seeds=1)
    (first,), _ = drawings([tmp_path], ["bits"])
    with matplotlib.rc_context(
        {"font.size": 30, "axes.facecolor": "black", "text.usetex": True, "svg.fonttype": "none"}
    ):
        (second,), _ = drawings([tmp_path], ["bits"])
        assert first.svg() == second.svg()
