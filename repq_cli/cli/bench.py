"""``repq bench``: times side by side, of networks (``infer``), training steps (``train``) or a kernel (``xnor``)."""

from __future__ import annotations

from typing import Any

import torch

from repq_cli.cli.config_folder import config_file
from repq_cli.config import section_of
from repq_cli.errors import ConfigError
from repq_cli.train.options import RuntimeOptions

LISTS = ("runs", "models", "reps", "modes", "quants", "precisions", "compiled", "against")
OF_TRAINING = {"models", "width", "classes", *LISTS[2:], "clock", "format"}
# The keys that each kind makes use of.
USED = {
    "infer": {"runs", "batch", "size", "rounds", "threads", "out", "plugins"},
    "train": {"batch", "size", "rounds", "threads", "out", "runtime"} | OF_TRAINING,
    "xnor": {"batch", "rounds"},
}
WHY = {
    "infer": "it times the networks of runs on the CPU",
    "train": "it times training steps of networks that it builds",
    "xnor": "it times the kernel alone, on one thread",
}
BATCHES, ROUNDS = {"train": [64]}, {"train": 9}  # by default; others: as inference
OF_INFERENCE = ([1, 32], 20)


def bench_job(config: dict[str, Any]) -> None:
    """Time, print a table, and for networks and training write bench.json."""
    kind = config["bench"]
    _refuse_unused(kind, config)
    runtime = section_of(RuntimeOptions, config["runtime"])
    config = config | {key: _as_list(config[key]) for key in LISTS}
    batch = BATCHES.get(kind, OF_INFERENCE[0]) if config["batch"] is None else _as_list(config["batch"])
    rounds = ROUNDS.get(kind, OF_INFERENCE[1]) if config["rounds"] is None else config["rounds"]
    if not batch:
        raise ConfigError("batch=[] names no number of images: use batch=[1,32].")
    config |= {"batch": batch, "rounds": rounds}
    if kind == "xnor":
        from repq_cli.cli.bench_kernel import kernel

        kernel(batch, rounds)
        return
    if kind == "train":
        from repq_cli.cli.bench_training import training

        training(config, runtime)
        return
    from repq_cli.cli.bench_inference import inference

    if config["threads"] is not None:
        torch.set_num_threads(config["threads"])
    inference(config)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _refuse_unused(kind: str, config: dict[str, Any]) -> None:
    """ConfigError for keys that this kind has no use for."""
    defaults = config_file("bench.yaml", None) | {"runtime": config_file("runtime/default.yaml", None)}
    unused = [key for key in config if key in defaults and key not in USED[kind] | {"bench"}]
    changed = [key for key in unused if config[key] != defaults[key] and key != "runtime"]
    if "runtime" in unused:
        given, own = config["runtime"], defaults["runtime"]
        changed += [f"runtime.{key}" for key in given if given[key] != own[key]]
    if changed:
        raise ConfigError(f"bench={kind} has no use for {', '.join(changed)}: {WHY[kind]}.")
