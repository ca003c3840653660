"""Networks measured on evaluation sets, for a run's row and for ``repq eval``, and crops of the pictures they make."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from repq_cli.data.base import Evaluation
from repq_cli.data.pictures import Pictures
from repq_cli.files import make_folder, write_json
from repq_cli.images.files import write_png
from repq_cli.images.panel import busiest, enlarged
from repq_cli.images.resize import to_bytes
from repq_cli.modes.unchanging import unchanging
from repq_cli.runs.folder import CropFolder
from repq_cli.runs.row import Row
from repq_cli.tasks.super_resolution import SuperResolution
from repq_cli.train.engine import Task, mean_score

CROP = 96  # pixels a side


@torch.no_grad()
def measure(
    nets: Mapping[str, nn.Module],
    tests: Mapping[str, Evaluation],
    task: Task,
    data_name: str,
    device: torch.device,
    tile: int,
    show_bar: bool = False,
) -> list[Row]:
    """What stands in a row's ``metrics``: every metric of every network on every set."""
    rows = []
    for name, split in tests.items():
        for engine, net in nets.items():
            bar = tqdm(total=len(split), desc=f"{name}, {engine}", unit="image", leave=False, disable=not show_bar)
            values: dict[str, list[Tensor]] = {}
            with bar, unchanging(net):
                for scores in task.measurements(net.eval(), split, device, tile):
                    for metric, score in scores.items():
                        values.setdefault(metric, []).append(score.cpu().double())
                    bar.update(len(next(iter(scores.values()))))
            rows += [
                {**task.set_keys(data_name, name), "name": metric, "engine": engine, **_summary(torch.cat(parts))}
                for metric, parts in values.items()
            ]
    return rows


def _summary(scores: Tensor) -> Row:
    """``value``, the mean; ``identical``: how many pictures are, and no part of it. Without ``value`` where all are."""
    identical = int(scores.isposinf().sum())
    value = {} if identical == len(scores) else {"value": mean_score(scores).item()}
    return value | ({"identical": identical} if identical else {})


def value_of(rows: list[Row], keys: Row) -> float | None:
    """The value of the row that has all of ``keys``."""
    return next((row.get("value") for row in rows if keys.items() <= row.items()), None)


def crops(
    nets: Mapping[str, nn.Module], tests: Mapping[str, Evaluation], task: Task, device: torch.device, tile: int
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """For each set of pictures the busiest part of its first one: low resolution, every network's, the original.

    ``uint8 [3, h, w]``, all at full resolution. None where the task has no pictures.
    """
    if not isinstance(task, SuperResolution):
        return
    for name, split in tests.items():
        assert isinstance(split, Pictures)
        pair = split.pairs[0]
        pictures = {"LR": enlarged(pair.low, task.scale)}
        for engine, net in nets.items():
            with unchanging(net):
                _, rgb = task.upscale(_as_upscaler(net.eval()), pair.low.to(device), tile)
            pictures[engine] = to_bytes(rgb.cpu())
        pictures["HR"] = pair.high
        rows, columns = busiest(pair.high, CROP)
        yield name, {label: picture[:, rows, columns] for label, picture in pictures.items()}


def write_crops(folder: CropFolder, pictures: Mapping[str, Tensor], metrics: Sequence[Row]) -> None:
    """Write the pictures of one set, and what the networks that made them reach on all of it."""
    make_folder(folder.path)
    shown = {"original" if label == "HR" else label: picture for label, picture in pictures.items() if label != "LR"}
    for label, picture in shown.items():
        write_png(folder.picture(label), picture)
    measured = [row for row in metrics if row["set"] == folder.name and row["engine"] in shown]
    values = {row["engine"]: row["value"] for row in measured if row["name"] == "psnr_y" and "value" in row}
    write_json(folder.values, {"scale": measured[0]["scale"], "psnr_y": values})


def _as_upscaler(net: nn.Module) -> Any:
    """A network of this task has a ``halo``, which ``nn.Module`` knows nothing of."""
    return net
