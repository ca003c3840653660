"""``repq diagnose``: which layer of a finished run hurts, and what to try."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from repq_cli import build
from repq_cli.cli.figures import drawn
from repq_cli.command_keys import DiagnoseKeys
from repq_cli.config import section_of
from repq_cli.devices import use_device
from repq_cli.errors import ConfigError
from repq_cli.files import make_folder, write_json
from repq_cli.finished_run import FinishedRun
from repq_cli.modes.weights import blocks_behind
from repq_cli.report.advice import advice
from repq_cli.report.bit_budget import budget_text
from repq_cli.report.diagnosis import LEGEND, layer_table, summary
from repq_cli.runs.folder import DIAGNOSIS
from repq_cli.runs.row import prune
from repq_cli.train.bit_budget import WIDTHS, measured, spending
from repq_cli.train.diagnosis import diagnose, some_of
from repq_cli.train.divergence import chance
from repq_cli.train.engine import EVAL_BATCH

if TYPE_CHECKING:
    from repq_cli.report.figures.drawing import Drawing

FORMAT = 1
WIDTH = 120  # columns


def diagnose_job(tree: dict[str, Any]) -> None:
    """Measure, print the table and the advice, and write both with the figure."""
    asked = section_of(DiagnoseKeys, tree)
    run = FinishedRun(asked.run, asked.plugins)
    run.folder.refuse_links()
    run_config = run.config
    quant = run_config.quant
    if quant.label == "fp32":
        raise ConfigError(f"run={run.folder} is of quant=fp32, where nothing is quantized: name a run of fewer bits.")
    if asked.threads is not None:
        torch.set_num_threads(asked.threads)
    device = use_device(asked.device, "device")
    data, task = build.data(run_config), build.task(run_config)
    nets = run.trained(data.info)
    mode = run_config.mode.rule
    blocks = blocks_behind(nets["fp"] if mode.merges_first else nets["fake"])
    net = mode.shipped_net(nets["fake"], quant.init)
    out = make_folder(Path(asked.out) if asked.out else run.folder.diagnose, "name another with out=DIR")
    images = some_of(data.val, asked.images)
    show_bar = sys.stderr.isatty() and asked.verbosity != "quiet"
    found = {
        "format": FORMAT,
        **{key: run.row[key] for key in ("model", "rep", "mode", "quant")},
        "data": {"name": run_config.data.name, "split": "val", "images": len(images), "of": len(data.val)},
        "metric": {
            "name": task.metric,
            "unit": task.unit,
            "higher_is_better": task.higher_is_better,
            **({"guess": sum(chance(images, data.info.num_classes))} if task.name == "classification" else {}),
        },
        **diagnose(net, nets["fp"], blocks, images, task, device, show_bar),
    }
    found["advice"] = advice(found)
    if asked.budget is not None:
        batches = [x for x, _ in images.batches(EVAL_BATCH, device)]
        bar = tqdm(total=len(WIDTHS), desc="budget", unit="width", leave=False, disable=not show_bar)
        with bar:
            network = measured(nets["fp"], quant, batches, data.info.shape, bar.update)
        found["budget"] = spending(network, asked.budget * 1e9)
    write_json(out / DIAGNOSIS, prune(found))
    print(f"{run}, {quant.label}")
    print(f"{len(images)} of {len(data.val)} images of the validation split; the test split is not used\n")
    print(f"{summary(found)}\n\n{layer_table(found)}\n{LEGEND}\n")
    print("\n".join(textwrap.fill(sentence, WIDTH) for sentence in found["advice"]))
    if "budget" in found:
        print(f"\n{budget_text(found)}\n")
    print(f"written to {', '.join(map(str, [out / DIAGNOSIS, *drawn(lambda: _figure(found), out)]))}")


def _figure(found: dict[str, Any]) -> list[Drawing]:
    from repq_cli.report.figures.layers import layer_figure

    return [layer_figure(found)]
