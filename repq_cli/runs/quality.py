"""Metrics of networks on evaluation sets, as text."""

from __future__ import annotations

import math
from collections.abc import Sequence

from repq_cli.runs.row import Row
from repq_cli.text import columns

ENGINES = {
    "bicubic": "bicubic",
    "fp": "FP",
    "fake": "QAT",
    "deployed": "deployed",
    "integer": "integer",
    "onnx": "ONNX",
    "xnor": "XNOR",
    "packed": "packed",
}
UNITS = {"top1": "%", "psnr_y": "dB", "psnr_rgb": "dB", "ssim_y": "", "ssim_rgb": "", "loss": "", "score": ""}
FINE = ("ssim", "loss", "score")  # metrics of four digits


def quality_table(rows: Sequence[Row]) -> str:
    """A line for each set and metric, a column for each network; ``rows`` are those of a row's ``metrics``.

    >>> print(quality_table([
    ...     {"set": "set5", "scale": 2, "name": "psnr_y", "engine": "bicubic", "value": 33.64},
    ...     {"set": "set5", "scale": 2, "name": "psnr_y", "engine": "deployed", "value": 36.5},
    ... ]))
    set   scale  metric      bicubic  deployed
    set5  x2     psnr_y, dB    33.64     36.50
    """
    engines = [engine for engine in ENGINES if any(row["engine"] == engine for row in rows)]
    scaled = any("scale" in row for row in rows)
    header = ["set", *(["scale"] if scaled else []), "metric"]
    lines = [[*header, *(ENGINES[engine] for engine in engines)]]
    values = {(row["set"], row.get("scale"), row["name"], row["engine"]): shown(row) for row in rows}
    for name, scale, metric in dict.fromkeys(key[:3] for key in values):
        unit = UNITS.get(metric, "")
        words = [name, *([f"x{scale}"] if scaled else []), f"{metric}, {unit}" if unit else metric]
        found = (values.get((name, scale, metric, engine), "") for engine in engines)
        lines.append([*words, *found])
    return columns(lines, len(header))


def number(value: float, metric: str) -> str:
    """With as many digits as the literature gives."""
    return f"{value:.4f}" if metric.startswith(FINE) else f"{value:.2f}"


def measured(value: float, metric: str) -> str:
    """With its unit; an infinite PSNR is that of identical pictures.

    >>> measured(33.64, "psnr_y"), measured(math.inf, "psnr_y"), measured(0.91, "ssim_y")
    ('33.64 dB', 'identical', '0.9100')
    """
    return "identical" if math.isinf(value) else f"{number(value, metric)} {UNITS[metric]}".rstrip()


def shown(row: Row, unit: str = "") -> str:
    """What a row of ``metrics`` says; identical pictures are counted beside the mean of the others.

    >>> shown({"name": "psnr_y", "value": 33.64, "identical": 2}, " dB"), shown({"name": "psnr_y", "identical": 5})
    ('33.64 dB + 2 identical', 'identical')
    """
    if "value" not in row:
        return "identical" if "identical" in row else ""
    others = f" + {row['identical']} identical" if "identical" in row else ""
    return f"{number(row['value'], row['name'])}{unit}{others}"


def signed(value: float, metric: str) -> str:
    """A difference with its sign; zero has none.

    >>> signed(0.5, "top1"), signed(-0.25, "top1"), signed(-0.001, "top1")
    ('+0.50', '-0.25', '0.00')
    """
    text = number(abs(value), metric)
    return text if float(text) == 0 else f"{'+' if value > 0 else '-'}{text}"
