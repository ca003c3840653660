"""``repq export``: the network of a finished run as a file to ship, opened again and proven on the run's test data."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from repq_cli import __version__, build
from repq_cli.command_keys import ExportKeys
from repq_cli.config import Config, section_of
from repq_cli.data.base import Evaluation
from repq_cli.deploy.check import agreeing, largest_difference
from repq_cli.deploy.network import GRAPH, TENSORS, DeployedNet
from repq_cli.deploy.onnx_form import Form
from repq_cli.deploy.same import DECIBELS, is_another_psnr, sets_with_too_many
from repq_cli.deploy.signs import sums_before_signs
from repq_cli.errors import CheckError, ConfigError
from repq_cli.extras import extra
from repq_cli.files import move, read_regular, unproven_in, write_atomically
from repq_cli.finished_run import FinishedRun
from repq_cli.runs.quality import UNITS, quality_table, shown
from repq_cli.runs.row import Row
from repq_cli.sealed import ONNX_MARK, seal
from repq_cli.train.engine import EVAL_BATCH
from repq_cli.train.evaluation import measure

CPU = torch.device("cpu")
# The keys that are about ONNX, with what they are where nobody sets them.
OF_ONNX = {"biases": "auto", "reduce_range": False, "weights": "int8", "zero_points": "auto", "opset": None}


def export_job(tree: dict[str, Any]) -> None:
    """Write, read back, compare, and print both metrics. A file that fails the comparison is named ``*.rejected``.

    What is not proven yet stands in a folder of its own, so that no file of the right name is ever unproven.
    """
    asked = section_of(ExportKeys, tree)
    _refuse(asked)
    if asked.out is not None and Path(asked.out).suffix == f".{asked.format}":
        raise ConfigError(f"out={asked.out} names a folder, in which the file is called model.onnx: leave .onnx out.")
    run = FinishedRun(asked.run, asked.plugins)
    run.folder.refuse_links()
    deployed = run.deployed
    out = Path(asked.out) if asked.out else run.folder.export
    if asked.threads is not None:
        torch.set_num_threads(asked.threads)
    sets = run.tests(run.config)
    task = build.task(run.config)
    with unproven_in(out, "name another with out=DIR") as folder:
        print(run)
        for biases in _attempts(asked):
            shipped, names = _written(biases, run, folder, asked)
            nets = {"deployed": deployed, asked.format: shipped}
            rows = measure(nets, sets, task, run.config.data.name, CPU, 1024)
            print(quality_table(rows))
            problem = _difference(deployed, shipped, sets, task, rows)
            if problem is None:
                break
            print(f"{problem}.")
        ending = ".rejected" if problem else ""
        for name in names:
            move(folder / name, out / f"{name}{ending}")
    files = ", ".join(str(out / f"{name}{ending}") for name in names)
    if problem is not None:
        hint = " (biases=float may help)" if biases == "int32" else ""
        if asked.reduce_range:
            hint = " (reduce_range=true takes a bit of the weights: leave it out, which is exact everywhere)"
        raise CheckError(f"{problem}{hint}: the file must not be shipped, and is named {files}.")
    if biases == "float":
        print(f"Unrounded biases make kernels run in floating point, slowly{_way_to_integers(deployed, run.config)}.")
    print(f"written to {files}")


def _refuse(asked: ExportKeys) -> None:
    """ConfigError for keys that have no meaning beside others."""
    of_onnx = [key for key, default in OF_ONNX.items() if getattr(asked, key) != default]
    if asked.format == "packed" and of_onnx:
        raise ConfigError(f"With format=packed leave {' and '.join(of_onnx)} out, since packed files are no ONNX.")
    if asked.zero_points == "none" and asked.biases != "auto":
        raise ConfigError("zero_points=none writes biases as numbers in any case: leave biases out.")


def _way_to_integers(deployed: DeployedNet, config: Config) -> str:
    """By which key biases would be integers, where a run of this configuration has none but could."""
    before_signs = sums_before_signs(deployed)
    layers = [node for node in deployed.nodes if node.get("bias") and node["name"] in deployed.on_codes - before_signs]
    rounded = all(node["bias_step"] or node.get("input_scale") for node in layers)
    return "" if rounded or config.quant.int32_bias else "; training with quant.int32_bias=true gives integers"


def _attempts(asked: ExportKeys) -> Sequence[str | None]:
    """The kinds of biases to try until one agrees."""
    if asked.format == "packed":
        return (None,)
    if asked.zero_points == "none":
        return ("int32",)
    return ("int32", "float") if asked.biases == "auto" else (asked.biases,)


def _written(biases: str | None, run: FinishedRun, folder: Path, asked: ExportKeys) -> tuple[Any, list[str]]:
    """The network as it was read back from ``folder``, and the names of its files."""
    if biases is not None:
        file = run.folder.onnx.name
        return _onnx(run, folder / file, biases, asked), [file]
    for name in (TENSORS, GRAPH):
        write_atomically(folder / name, read_regular(run.folder.deploy / name))
    return DeployedNet.load(folder), [TENSORS, GRAPH]


def _onnx(run: FinishedRun, path: Path, biases: str, asked: ExportKeys) -> Any:
    with extra("export"):
        from repq_cli.deploy.onnx_graph import to_onnx
        from repq_cli.deploy.onnx_kernels import note_kernels
        from repq_cli.deploy.onnx_run import OnnxNet, fast_int8
    deployed = run.deployed
    form = Form.of(biases, **{key: getattr(asked, key) for key in OF_ONNX if key != "biases"})
    model = to_onnx(deployed, form)
    for key, value in (("run", run.folder.path.resolve().name), ("trained", run.what), ("repq", __version__)):
        model.metadata_props.add(key=key, value=value)
    found = note_kernels(model)
    content = model.SerializeToString()
    write_atomically(path, content, seal(content, ONNX_MARK))
    shipped = OnnxNet(path, deployed.halo, asked.threads)
    print(f"ONNX opset {form.opset}, QDQ form, {_notes(deployed, form, shipped.about)}")
    print(f"ONNX Runtime here runs {found}")
    if not fast_int8() and not form.reduce_range:
        print(
            "This processor has no VNNI: kernels of uint8 times int8 saturate, and slower exact ones are used here. "
            "Where the file runs elsewhere without VNNI, reduce_range=true makes fast ones exact."
        )
    return shipped


def _notes(deployed: DeployedNet, form: Form, about: Mapping[str, str]) -> str:
    """What the file's codes and biases are."""
    found = ["biases as numbers in the convolutions" if form.symmetric else f"{about['biases']} biases"]
    if form.symmetric:
        found.append("int8 without zero-points, for runtimes that make their own kernels of it")
    widths = sorted({node["bits"] for node in deployed.nodes if "bits" in node})
    narrow = [str(bits) for bits in widths if bits < 8]
    if narrow:
        found.append(f"codes of {', '.join(narrow)} bits are those of 8 with a tighter clip")
    if form.int4:
        found.append("weights of 4 bits and fewer stored as INT4, and made int8 when the file is loaded")
    if form.reduce_range:
        lost = ": those of 8 bits lose one" if 8 in widths else ""
        found.append(f"weights from -64 to 64, so that no sum of products saturates on a processor without VNNI{lost}")
    if "float_layers" in about:
        count = len(about["float_layers"].split(", "))
        found.append(f"{count} depthwise layers run in floating point, being slow in integers")
    return "; ".join(found)


@torch.no_grad()
def _difference(
    deployed: DeployedNet, shipped: Any, sets: Mapping[str, Evaluation], task: Any, rows: list[Row]
) -> str | None:
    """What is wrong, or None; prints how far the two are from each other."""
    largest = []
    same: dict[str, list[torch.Tensor]] = {name: [] for name in sets}
    for name, split in sets.items():
        for x, _ in split.batches(EVAL_BATCH, CPU):
            expected, found = deployed(x), shipped(x)
            largest.append(largest_difference(found, expected))
            same[name].append(agreeing(found, expected, task.agreement))
    of_set = {name: torch.cat(parts) for name, parts in same.items()}
    shares = torch.cat([*of_set.values()])  # of each picture's pixels, or all or nothing of an answer
    others = {name: (int((share < 100).sum()), len(share)) for name, share in of_set.items()}
    pictures = task.name == "super_resolution"
    equal = f"{shares.mean():.2f} % of pixels" if pictures else f"{(shares == 100).sum()} of {len(shares)} answers"
    # The maximum of a tensor is NaN if one of its values is.
    difference = torch.stack(largest).max().item()
    print(f"largest difference {difference:.3g}, {equal} equal")
    if math.isnan(difference):
        return "outputs are not numbers"
    return _worse_pictures(task.metric, rows) if pictures else sets_with_too_many(others)


def _worse_pictures(metric: str, rows: list[Row]) -> str | None:
    """A set whose metric differs between the two networks."""
    sets: dict[tuple[Any, Any], list[Row]] = defaultdict(list)
    for row in rows:
        if row["name"] == metric:
            sets[row["set"], row.get("scale")].append(row)
    for (name, _), pair in sets.items():
        first, second = (row.get("value", math.inf) for row in pair)
        # Identical pictures are no part of the mean: of others it would be another mean.
        if len({row.get("identical", 0) for row in pair}) > 1 or is_another_psnr(second, first):
            found = " and ".join(shown(row, f" {UNITS[metric]}") for row in pair)
            return f"{metric} on {name} is {found}, and {DECIBELS} dB may lie between"
    return None
