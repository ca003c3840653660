"""Logs, measurements, histograms and crops with made-up numbers, for figures."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from PIL import Image
from synthetic_runs import done, mode_and_bits

from repq_cli.report.figures.catalogue import Drawing

QUANTIZERS = ["blocks.0.quantizer", "blocks.1.quantizer", "classifier.quantizer", "taps.0", "taps.1", "classifier_tap"]


def write_log(run: Path, fp: int = 4, qat: int = 3, metric: str = "top1", best: float = 90.0) -> Path:
    """A log whose loss falls and whose metric rises to ``best``."""
    entries: list[dict[str, Any]] = []
    for stage, epochs in (("fp", fp), ("qat", qat)):
        for epoch in range(epochs):
            entries.append({"stage": stage, "step": 10 * epoch + 5, "epoch": epoch, "loss": 1.0, "lr": 0.1})
            losses = {
                "train_loss": 2.0 / (epoch + 1),
                f"train_{metric}": best,
                f"val_{metric}": best - 30 / (epoch + 1),
            }
            steps = {name: 0.1 * (1 + 0.1 * place * epoch) for place, name in enumerate(QUANTIZERS)}
            more = {"step_sizes": steps} if stage == "qat" else {}
            entries.append({"stage": stage, "step": 10 * epoch + 10, "epoch": epoch, **losses, **more})
    (run / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return run


def bench_rows(model: str = "mobilenet", widths: tuple[float, ...] = (0.25, 0.5, 1.0)) -> list[dict[str, Any]]:
    """Every net in its engines at two batch sizes."""
    kinds = {("multi-branch", "torch"): 6.0, ("merged", "torch"): 3.0, ("merged", "onnxruntime"): 2.0}
    kinds |= {("int8", "onnxruntime"): 1.1}
    rows = []
    for width in widths:
        for (net, engine), cost in kinds.items():
            for batch in (1, 8):
                median = cost * width * (1 if batch == 1 else 6)
                value = 99 - 4 / width - (1.5 if net == "int8" else 0.0)
                rows.append(
                    {
                        "run": f"outputs/train/{model}-{width}",
                        "model": model,
                        "rep": "repvgg",
                        "mode": "repq_bn",
                        "width": width,
                        "bits": [8, 8],
                        "input_shape": [3, 224, 224],
                        "net": net,
                        "engine": engine,
                        "batch": batch,
                        "median_ms": median,
                        "low_ms": 0.95 * median,
                        "high_ms": 1.1 * median,
                        "images_per_second": 1000 * batch / median,
                        "data": "digits",
                        "metric": {"name": "top1", "split": "test", "value": value},
                    }
                )
    return rows


def write_bench(folder: Path, rows: Any = None, **changes: Any) -> Path:
    """A ``bench.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"format": 1, "bench": "infer", "machine": "A Processor", "threads": 2, "rounds": 20}
    content |= {"started": "2026-01-01T12:00:00+00:00", "rows": bench_rows() if rows is None else rows}
    (folder / "bench.json").write_text(json.dumps(content | changes))
    return folder / "bench.json"


def step_rows() -> list[dict[str, Any]]:
    """Training steps of our own and of a peer, eager and compiled."""
    kinds = {"FP plain": ("fp", ""), "Plain QAT": ("qat", "plain"), "RepQ-BN acnet": ("qat", "repq_bn")}
    kinds |= {"convolutions of RepQ-BN acnet": ("convolutions", ""), "textbook LSQ QAT": ("qat", "plain")}
    return [
        {"model": "stack", "label": label, "stage": stage, "mode": mode, "quant": "w4a4" if stage == "qat" else "",
         "by": "lsq" if "LSQ" in label else "repq", "column": column, "median_ms": cost * factor,
         "low_ms": 0.9 * cost * factor, "high_ms": 1.1 * cost * factor}
        for column, factor in (("eager", 1.0), ("compiled", 0.5))
        for cost, (label, (stage, mode)) in enumerate(kinds.items(), 2)
    ]  # fmt: skip


def layer(name: str, bits: int = 4, spread: float = 2.0, seed: int = 0) -> dict[str, Any]:
    """Histograms of branches, their sum, and its codes."""
    draw = random.Random(seed)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    reach = 2 * high + 2
    bins = 8 * reach
    edges = [-reach + 2 * reach * index / bins for index in range(bins + 1)]

    def counts(values: list[float]) -> list[int]:
        found = [0] * bins
        for value in values:
            found[min(bins - 1, max(0, int((value + reach) / (2 * reach) * bins)))] += 1
        return found

    dense = [draw.gauss(0, high / 3) for _ in range(4000)]
    point = [draw.gauss(0, high / 3 * spread) if index % 9 == 0 else 0.0 for index in range(4000)]
    merged = [first + second for first, second in zip(dense, point, strict=True)]
    codes = [min(high, max(low, math.floor(value + 0.5))) for value in merged]
    return {
        "name": name,
        "bits": bits,
        "low": low,
        "high": high,
        "edges": edges,
        "merged": counts(merged),
        "branches": {"dense": counts(dense), "point": counts(point)},
        "codes": [codes.count(level) for level in range(low, high + 1)],
    }


def write_weights(run: Path, layers: Any = None) -> Path:
    """A ``weights.json``."""
    default = [layer("stem", 8), layer("stages.0.0", 4, 4.0, 1), layer("stages.1.0", 4), layer("classifier", 8, 1.0)]
    (run / "weights.json").write_text(json.dumps({"format": 1, "layers": default if layers is None else layers}))
    return run


def write_crops(run: Path, name: str = "set5", side: int = 16, scale: Any = 2) -> Path:
    """Pictures that differ a little, and their PSNR."""
    folder = run / "crops" / name
    folder.mkdir(parents=True)
    for number, kind in enumerate(("original", "bicubic", "fp", "deployed")):
        picture = Image.new("RGB", (side, side), (40 * number, 120, 200))
        picture.putpixel((side // 2, side // 2), (255, 255, 255))
        picture.save(folder / f"{kind}.png")
    psnr = {"bicubic": 33.0, "fp": 36.5, "deployed": 36.25}
    (folder / "values.json").write_text(json.dumps({"scale": scale, "psnr_y": psnr}))
    return run


def sweep(top: Path, reps: tuple[str, ...] = ("repvgg",), seeds: int = 2) -> Path:
    """Three modes at two widths."""
    for rep in reps:
        for seed in range(seeds):
            for bits in (8, 4):
                for gain, mode in enumerate(("plain", "merged", "repq_bn")):
                    block = {"rep.name": rep, "rep._target_": f"repq_cli.reparam.{rep}.{rep}_block"}
                    folder = top / f"{rep}-{mode}-{bits}-{seed}"
                    value = 90.0 + gain - (8 - bits) / 2 + 0.3 * seed
                    write_log(done(folder, mode_and_bits(mode, bits, bits, seed) | block, 92.0 + seed / 4, value))
    return top


def named(drawn: list[Drawing], figure: str) -> list[Drawing]:
    return [drawing for drawing in drawn if drawing.name.startswith(figure)]


def texts(drawing: Drawing) -> list[str]:
    """All that is written in a figure."""
    from matplotlib.text import Text

    drawing.png(50)  # ticks are made when a figure is drawn
    found = [text.get_text().strip() for text in drawing.figure.findobj(Text) if isinstance(text, Text)]
    return [text for text in found if text]
