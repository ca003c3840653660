"""Published figures: those of the sources, and only where they belong."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from synthetic_runs import (
    done,
    lines_with,
    printed,
)

from repq_cli.report.published import published

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
