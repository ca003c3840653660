"""``repq bench``: times side by side, of networks (``infer``), training steps (``train``) or a kernel (``xnor``)."""

from __future__ import annotations

from typing import Any

import torch

from repq_cli.cli.config_folder import config_file
from repq_cli.command_keys import BenchKeys, listed
from repq_cli.config import section_of
from repq_cli.errors import ConfigError

OF_TRAINING = {
    "models", "width", "classes", "reps", "modes", "quants", "precisions", "compiled", "against", "clock", "format",
}  # fmt: skip
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


def bench_job(tree: dict[str, Any]) -> None:
    """Time, print a table, and for networks and training write bench.json."""
    asked = section_of(BenchKeys, tree)
    kind = asked.bench
    _refuse_unused(kind, tree)
    batches = BATCHES.get(kind, OF_INFERENCE[0]) if asked.batch is None else listed(asked.batch)
    rounds = ROUNDS.get(kind, OF_INFERENCE[1]) if asked.rounds is None else asked.rounds
    if not batches:
        raise ConfigError("batch=[] names no number of images: use batch=[1,32].")
    if kind == "xnor":
        from repq_cli.cli.bench_kernel import kernel

        kernel(batches, rounds)
        return
    if kind == "train":
        from repq_cli.cli.bench_training import training

        training(asked, batches, rounds)
        return
    from repq_cli.cli.bench_inference import inference

    if asked.threads is not None:
        torch.set_num_threads(asked.threads)
    inference(asked, batches, rounds)


def _refuse_unused(kind: str, tree: dict[str, Any]) -> None:
    """ConfigError for keys that this kind has no use for."""
    defaults = config_file("bench.yaml", None) | {"runtime": config_file("runtime/default.yaml", None)}
    unused = [key for key in tree if key in defaults and key not in USED[kind] | {"bench"}]
    changed = [key for key in unused if tree[key] != defaults[key] and key != "runtime"]
    if "runtime" in unused:
        given, own = tree["runtime"], defaults["runtime"]
        changed += [f"runtime.{key}" for key in given if given[key] != own[key]]
    if changed:
        raise ConfigError(f"bench={kind} has no use for {', '.join(changed)}: {WHY[kind]}.")
