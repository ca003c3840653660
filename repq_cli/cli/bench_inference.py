"""``repq bench bench=infer``: times of the networks that runs lead to, as a table, a figure and bench.json."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from repq_cli.bench.timing import speedup, spread
from repq_cli.cli.bench_rounds import FORMAT, made, timed, written
from repq_cli.command_keys import BenchKeys, listed
from repq_cli.deploy.network import DeployedNet
from repq_cli.errors import ConfigError
from repq_cli.extras import extra
from repq_cli.files import write_json
from repq_cli.finished_run import FinishedRun
from repq_cli.memory import require_memory
from repq_cli.reparam.block import merge_first
from repq_cli.runs.folder import BENCH
from repq_cli.runs.row import Row, now, prune
from repq_cli.text import columns, milliseconds
from repq_cli.train.environment import environment

if TYPE_CHECKING:
    from repq_cli.bench.inference import Candidate

HEADER = ["batch", "net", "engine", "ms a batch", "quartiles", "images/s", "x training graph", "x merged (onnxruntime)"]


def inference(asked: BenchKeys, batches: list[int], rounds: int) -> None:
    """Time, print a table for each run, write bench.json and its figure."""
    if not asked.runs:
        raise ConfigError("bench=infer wants folders of runs that are done: 'runs=[outputs/train/A,outputs/train/B]'.")
    runs = listed(asked.runs)
    for run in runs:  # before anything is measured
        finished = FinishedRun(run, asked.plugins)
        _refuse_batches(_for_images(finished.deployed, asked.size), batches)
        _ = finished.config
    with extra("export"):
        import repq_cli.bench.inference  # noqa: F401
    out = made(asked.out, "infer")
    threads = torch.get_num_threads()
    machine = f"{environment()['cpu']}, {threads} thread{'' if threads == 1 else 's'}, torch {torch.__version__}"
    found = {"format": FORMAT, "bench": "infer", "started": now(), "machine": machine, "threads": threads}
    rows: list[Row] = []
    for run in runs:
        rows += _run(FinishedRun(run, asked.plugins), batches, rounds, asked.size, threads)
        write_json(out / BENCH, prune({**found, "rounds": rounds, "rows": rows}))
    print(written(out, "speed"))


def _run(run: FinishedRun, batches: list[int], rounds: int, size: int | None, threads: int) -> list[Row]:
    """The rows of one run; printed as a table."""
    from repq_cli.bench.inference import candidates, check_equal, exported_biases

    row, folder = run.row, run.folder
    exported = exported_biases(folder.onnx, run.deployed)
    deployed = _for_images(run.deployed, size)
    fp_net = run.trained(run.inputs)["fp"]
    merge_first(fp_net, False)  # branch by branch even where training merged them to be fast
    nets, notes = candidates(fp_net, deployed, threads, exported)
    shape = deployed.graph["input_shape"]
    images = {batch: _images(batch, shape, row["task"]) for batch in batches}
    check_equal(nets, images[min(images)])
    calls = {(batch, net): _call(net.run, x) for batch, x in images.items() for net in nets}
    seconds = timed(calls, rounds, str(folder))
    about = {key: row.get(key) for key in ("model", "rep", "mode", "data")}
    bits = [row["quant"]["weight_bits"], row["quant"]["act_bits"]]
    about |= {"run": str(folder), "width": run.config.model.width, "input_shape": shape, "bits": bits}
    rows = [about | _measured(batch, net, seconds, row["metric"]) for batch, net in calls]
    print(f"{run}, w{bits[0]}a{bits[1]}; images {'x'.join(map(str, shape))}, threads: {threads}")
    print(f"medians of {rounds} interleaved rounds, speeds as multiples\n{_table(rows)}")
    for note in notes:
        print(note)
    return rows


def _for_images(deployed: DeployedNet, size: int | None) -> DeployedNet:
    """The network for images of ``size`` rows and columns."""
    channels, *sides = deployed.graph["input_shape"]
    sides = sides if size is None else [size, size]
    return DeployedNet({**deployed.graph, "input_shape": [channels, *sides]}, deployed.stored)


def _refuse_batches(deployed: DeployedNet, batches: Sequence[int]) -> None:
    """ConfigError for images that this machine's memory does not hold, or what a layer makes of them."""
    shape = deployed.graph["input_shape"]
    try:
        largest = max(math.prod(size) for size in deployed.sizes().values())
    except RuntimeError as error:  # of torch, where two sizes do not fit
        said = str(error).partition("\n")[0]
        raise ConfigError(f"The network does not run on images {'x'.join(map(str, shape))} ({said}).") from error
    size = 4 * (math.prod(shape) * sum(batches) + largest * max(batches))
    what = f"batch={','.join(map(str, batches))} of images {'x'.join(map(str, shape))}"
    require_memory(size, what, "choose fewer images, or fewer pixels (size)")


def _measured(batch: int, net: Candidate, seconds: dict[tuple[int, Candidate], list[float]], metric: Row) -> Row:
    """What bench.json says of one network at one batch size."""
    own = seconds[batch, net]
    references = {candidate: times for (size, candidate), times in seconds.items() if size == batch}
    by_kind = {(candidate.net, candidate.engine): times for candidate, times in references.items()}
    middle, low, high = spread(own)
    value = metric.get("fp" if net.is_float else "deployed") if net.proven else None
    return {
        "net": net.net,
        "engine": net.engine,
        "batch": batch,
        "median_ms": middle * 1e3,
        "low_ms": low * 1e3,
        "high_ms": high * 1e3,
        "images_per_second": batch / middle,
        "times_training_graph": speedup(own, next(iter(references.values()))),
        "times_merged": speedup(own, by_kind["merged", "onnxruntime"]),
        "metric": {"name": metric["name"], "split": metric["split"], "value": value},
    }


def _table(rows: Sequence[Row]) -> str:
    lines = [
        [
            str(row["batch"]),
            row["net"],
            row["engine"],
            milliseconds(row["median_ms"]),
            f"{milliseconds(row['low_ms'])}-{milliseconds(row['high_ms'])}",
            f"{row['images_per_second']:,.0f}",
            f"{row['times_training_graph']:.2f}",
            f"{row['times_merged']:.2f}",
        ]
        for row in rows
    ]
    return columns([HEADER, *lines], 3)


def _images(batch: int, shape: Sequence[int], task: str) -> torch.Tensor:
    """Noise as networks read images: normalised for classes, pixels from 0 to 255 for super-resolution."""
    generator = torch.Generator().manual_seed(0)
    if task == "super_resolution":
        return torch.rand(batch, *shape, generator=generator) * 255
    return torch.randn(batch, *shape, generator=generator)


def _call(run: Any, x: torch.Tensor) -> Any:
    def call() -> None:
        with torch.inference_mode():
            run(x)

    return call
