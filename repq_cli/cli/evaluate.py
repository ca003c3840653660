"""``repq eval``: the networks of a finished run on its own test data or on any other."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from tqdm import tqdm

from repq_cli import build
from repq_cli.cli.engines import networks
from repq_cli.cli.runtime_proof import runtime_proof
from repq_cli.command_keys import EvalKeys
from repq_cli.config import DEFAULTS, Config, section_of
from repq_cli.data.base import Evaluation, listings_of
from repq_cli.data.identity import Identity
from repq_cli.deploy.check import compare_integers
from repq_cli.deploy.network import DeployedNet
from repq_cli.deploy.same import sets_with_too_many
from repq_cli.devices import use_device
from repq_cli.errors import ConfigError
from repq_cli.finished_run import FinishedRun
from repq_cli.runs.folder import RunFolder, alone_in
from repq_cli.runs.quality import quality_table
from repq_cli.runs.row import Row, merge_metrics
from repq_cli.train.engine import EVAL_BATCH
from repq_cli.train.evaluation import measure

SLOW = ("integer", "xnor")  # engines
PIXELS = 1 << 20  # of the images that they take at once


def eval_job(tree: dict[str, Any]) -> None:
    """Measure, print a table, and keep the numbers in the run's row."""
    options = section_of(EvalKeys, tree)
    run = FinishedRun(options.run, options.plugins)
    deployed, runtime, engine = run.deployed, options.runtime, options.engine
    if options.rounding != "gemmlowp" and engine != "integer":
        raise ConfigError(f"rounding={options.rounding} is of engine=integer: add that, or leave rounding out.")
    if runtime.threads is not None:
        torch.set_num_threads(runtime.threads)
    device = use_device(runtime.device)

    asked = _with_data(run, options, tree.get("task", DEFAULTS["task"]))
    sets = run.tests(asked)
    task = build.task(asked)
    nets = {name: net.to(device) for name, net in task.baselines().items()}
    nets |= networks(run, engine, device, runtime.threads, options.rounding)
    show_bar = sys.stderr.isatty() and options.verbosity != "quiet"
    shown: dict[str, Any] = dict(sets)
    if engine in SLOW:
        shown = {name: _InFew(split, run.inputs.shape) for name, split in sets.items()}
    rows = measure(nets, shown, task, asked.data.name, device, runtime.tile, show_bar)
    print(f"{run}\n{quality_table(rows)}", flush=True)
    if engine == "integer":
        print(_integer_proof(deployed, nets["integer"], shown, task, show_bar))
    if options.rounding == "onnxruntime":
        print(runtime_proof(deployed, nets["integer"], shown, runtime.threads))
    names = asked.data.name, run.config.data.name
    own = {name: split for name, split in sets.items() if len({str(task.set_keys(data, name)) for data in names}) == 1}
    _keep(run.folder, rows, _other_rules(asked, run.config) or _other_images(run.folder, own))


class _InFew:
    """An evaluation set of which few images are taken at once, so that a bar moves, and all layers' integers fit."""

    def __init__(self, split: Evaluation, shape: tuple[int, int, int]) -> None:
        self._split, self._most = split, max(1, PIXELS // (shape[1] * shape[2]))

    def batches(self, batch_size: int, device: torch.device) -> Iterator[Any]:
        """In order."""
        yield from self._split.batches(min(batch_size, self._most), device)

    def __len__(self) -> int:
        return len(self._split)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._split, name)


def _integer_proof(deployed: DeployedNet, integers: Any, sets: Mapping[str, Any], task: Any, show_bar: bool) -> str:
    """How far the integers are from the floating-point executor, in a sentence."""
    deployed = deployed.cpu()
    found = {}
    for name, split in sets.items():
        with tqdm(total=len(split), desc=f"{name}, proof", unit="image", leave=False, disable=not show_bar) as bar:
            found[name] = compare_integers(deployed, integers, _told(split, bar), task.agreement)
    images, others = (sum(getattr(each, key) for each in found.values()) for key in ("images", "others"))
    problem = None
    if task.name == "super_resolution":
        equal = f"{sum(each.answers * each.images for each in found.values()) / images:.2f} % of pixels"
    else:
        equal = f"{images - others} of {images} answers"
        problem = sets_with_too_many({name: (each.others, each.images) for name, each in found.items()})
    codes, outputs = (max(getattr(each, key) for each in found.values()) for key in ("max_lsb", "max_abs"))
    return (
        f"integers against the deployed net: codes differ by at most {codes:g} in a layer that is given the "
        f"same ones; end to end {equal} equal, largest difference {outputs:.3g}" + (f"; {problem}" if problem else "")
    )


def _told(split: Any, bar: Any) -> Iterator[torch.Tensor]:
    """Its images; the bar moves on where a batch is done with."""
    for x, _ in split.batches(EVAL_BATCH, torch.device("cpu")):
        yield x
        bar.update(len(x))


def _with_data(run: FinishedRun, options: EvalKeys, task: str) -> Config:
    """The run's configuration with the data, of a task, and the rounding that were asked for.

    Files are read in the network's colours, and in its size where none is asked for.
    """
    config = run.config
    changes: dict[str, Any] = {"plugins": list(dict.fromkeys([*config.plugins, *options.plugins]))}
    if options.data is not None:
        changes["data"] = options.data.keys() | _reading(options.data.arguments, run.inputs.shape)
        if task != config.task and (task, config.task) != ("classification", "features"):
            raise ConfigError(
                f"data={options.data.name} is for task={task}, and the run is one of {config.task}: "
                f"choose data of that task."
            )
    if options.psnr_rounding is not None:
        changes["psnr_rounding"] = options.psnr_rounding
    return build.checked(config.as_dict() | changes)


def _reading(arguments: Mapping[str, Any], shape: tuple[int, int, int]) -> dict[str, Any]:
    """Of data whose images may have any colours or size, as the network's input."""
    channels, height, width = shape
    colours = {"grey": channels == 1} if "grey" in arguments else {}
    return colours | ({"size": height} if "size" in arguments and arguments["size"] is None and height == width else {})


def _other_rules(asked: Config, run_config: Config) -> str:
    """In what rules of rounding this measurement differs from the run's own."""
    if asked.task != "super_resolution":
        return ""
    rules: list[tuple[str, object, object]] = [("psnr_rounding", asked.psnr_rounding, run_config.psnr_rounding)]
    low = asked.data.low_rounding, run_config.data.low_rounding
    if None not in low:  # in data of a plugin
        rules.append(("data.low_rounding", *low))
    keys = [key for key, here, there in rules if here != there]
    return f"another {' and '.join(keys)} than the run's" if keys else ""


def _other_images(folder: RunFolder, sets: Mapping[str, Evaluation]) -> str:
    """In what evaluation sets are not those of the same names that the run was measured on, as far as it tells."""
    then = Identity.load(folder.data_file)
    now = Identity(listings_of(sets))
    changes = now.select(then.splits).changes_since(then.select(now.splits)) if then is not None else []
    return f"other images than the run's ({', '.join(changes)})" if changes else ""


def _keep(folder: RunFolder, rows: list[Row], difference: str) -> None:
    """Put what was measured into summary.json, unless it would not compare with what stands there."""
    if difference:
        print(f"Measured with {difference}: printed only, not kept in its row.")
        return
    if not os.access(folder.path, os.W_OK):
        print(f"{folder} cannot be written: printed only, not kept in its row.")
        return
    with alone_in(folder.path):
        row = folder.read_row()
        assert row is not None
        folder.write_row({**row, "metrics": merge_metrics(row["metrics"], rows)})
