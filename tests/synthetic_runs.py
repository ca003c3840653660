"""Run folders with made-up numbers, and what ``repq table`` prints of them.

Run as a script, it renews those of ``table_rows``.
"""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from repq_cli.cli import main

ROWS = Path(__file__).with_name("table_rows")

CONFIG: dict[str, Any] = {
    "model": {"_target_": "repq_cli.models.repvgg.repvgg", "name": "repvgg_a0", "activation": None},
    "task": "classification",
    "seed": 0,
    "verbosity": "quiet",
    "quant": {
        "weight_method": "lsq",
        "act_method": "lsq",
        "granularity": "channel",
        "first_last": 8,
        "weight_bits": 8,
        "act_bits": 8,
    },
    "mode": {"name": "plain", "estimator": "offset", "plain_bn": "unfolded"},
    "fp": {"epochs": 120, "lr": 0.1, "checkpoint": None, "merged_training": False},
    "qat": {"epochs": 30, "lr": 0.01},
    "rep": {
        "_target_": "repq_cli.reparam.repvgg.repvgg_block",
        "name": "repvgg",
        "batch_norm": True,
        "kernels": [3],
    },
    "data": {"_target_": "repq_cli.data.imagenet.load", "name": "imagenet", "batch_size": 256, "root": "data"},
    "optim": {"name": "sgd", "momentum": 0.9, "weight_decay": 0.0001},
    "runtime": {"device": "auto", "threads": 1},
}
ENV = {"cpu": "A Processor", "threads": 1, "gpus": []}
SUPER_RESOLUTION = {
    "task": "super_resolution",
    "model.name": "ecbsr_m4c8",
    "model._target_": "repq_cli.models.ecbsr.ecbsr",
    "model.scale": 2,
    "rep.name": "ecb",
    "rep._target_": "repq_cli.reparam.ecb.ecb_block",
    "rep.batch_norm": False,
    "data.name": "photos",
    "data._target_": "repq_cli.data.photos.load",
}

Changes = dict[str, Any]


def config_of(changes: Changes) -> dict[str, Any]:
    """The configuration with some dotted keys changed."""
    config = copy.deepcopy(CONFIG)
    for key, value in changes.items():
        section = config
        *path, last = key.split(".")
        for part in path:
            section = section[part]
        section[last] = value
    return config


def row_of(config: dict[str, Any], fp: float, deployed: float, finished: str = "2026-01-01T12:00:00+00:00") -> Changes:
    """The row of a finished run; size and cost follow from the bits."""
    quant = config["quant"]
    pictures = config["task"] == "super_resolution"
    name, split = ("psnr_y", "set5") if pictures else ("top1", "test")
    where = (
        {"set": split, "scale": config["model"].get("scale")} if pictures else {"set": f"{config['data']['name']}/test"}
    )
    engines = {"fp": fp, "fake": deployed, "deployed": deployed} | ({"bicubic": 33.0} if pictures else {})
    metrics = [{**where, "name": name, "engine": engine, "value": value} for engine, value in engines.items()]
    if pictures:
        metrics += [{**item, "name": "ssim_y", "value": item["value"] / 40} for item in list(metrics)]
    bits = (quant["weight_bits"], quant["act_bits"])
    return {
        "status": "done",
        **{section: config[section]["name"] for section in ("model", "rep", "mode", "data")},
        "task": config["task"],
        "seed": config["seed"],
        "quant": dict(quant),
        "metric": {
            "name": name,
            "split": split,
            "higher_is_better": True,
            "fp": fp,
            "qat": deployed,
            "deployed": deployed,
        },
        "metrics": metrics,
        "size": {"bytes_fp32": 400_000, "bytes_packed": 20_000 + 10_000 * bits[0]},
        "cost": {"macs": 1_000_000, "bops": 1_000_000 * bits[0] * bits[1]},
        "time": {"fp_step_ms": 10.0, "qat_step_ms": 20.0 + len(config["mode"]["name"])},
        "lineage": {"torch_version": "2.9.0", "finished": finished},
    }


def write_run(folder: Path, config: Any = None, row: Any = None, env: Any = ENV) -> Path:
    """A run folder with those files that are given; a text or bytes as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        "config.yaml": (config, yaml.safe_dump),
        "summary.json": (row, json.dumps),
        "env.json": (env, json.dumps),
    }
    for name, (content, dump) in contents.items():
        if content is not None:
            text = (
                content if isinstance(content, str) else dump(content, **({"indent": 1} if dump is json.dumps else {}))
            )
            (folder / name).write_text(text)
    return folder


def done(folder: Path, changes: Changes, fp: float, deployed: float, **more: Any) -> Path:
    """A finished run of the configuration with ``changes``."""
    config = config_of(changes)
    return write_run(folder, config, row_of(config, fp, deployed, **more))


def failed(folder: Path, changes: Changes, error: str) -> Path:
    """A run that failed while it trained."""
    config = config_of(changes)
    row = row_of(config, 0, 0)
    kept = {key: row[key] for key in ("model", "rep", "mode", "data", "task", "seed", "quant", "lineage")}
    write_run(folder, config, {"status": "failed", "error": error, **kept})
    (folder / "metrics.jsonl").write_text('{"stage": "fp", "step": 1, "epoch": 0, "loss": 2.3, "lr": 0.1}\n')
    return folder


def mode_and_bits(mode: str, weight: int, act: int, seed: int = 0) -> Changes:
    """The keys that are columns of tables, and the seed."""
    return {"mode.name": mode, "quant.weight_bits": weight, "quant.act_bits": act, "seed": seed}


def write_all(top: Path) -> None:
    """Every kind of run that a table has to cope with."""
    gains = {"plain": 0.0, "merged": -0.4, "repq_bn": 0.9, "repq_bnest": 0.7}
    for bits in (8, 4):
        for mode, gain in gains.items():
            for seed in (0, 1):
                folder = top / "sweep" / f"{mode}-{bits}-{seed}"
                base = 71.0 + 0.25 * seed - (8 - bits) * 0.5
                if (mode, bits, seed) == ("merged", 4, 1):
                    failed(folder, mode_and_bits(mode, bits, bits, seed), "The loss became nan.\nAt step 12.")
                else:
                    fp = (70.5 if mode == "plain" else 72.0) + 0.1 * seed
                    done(folder, mode_and_bits(mode, bits, bits, seed), fp, base + gain * (1 + 0.3 * seed))
    qarepvgg = {"rep.name": "qarepvgg", "rep._target_": "repq_cli.reparam.qarepvgg.qarepvgg_block"}
    for seed in (0, 1):
        done(top / "qarepvgg" / str(seed), mode_and_bits("merged", 8, 8, seed) | qarepvgg, 71.5, 71.25 + 0.1 * seed)
    failed(top / "two_bits", mode_and_bits("merged", 2, 2), "The loss became nan.")
    resnet = {"model.name": "resnet18", "model._target_": "repq_cli.models.resnet.resnet18"}
    plain = resnet | {"rep.name": "none", "rep._target_": "repq_cli.reparam.plain.plain_block", "rep.kernels": []}
    acnet = resnet | {"rep.name": "acnet", "rep._target_": "repq_cli.reparam.acnet.acnet_block", "fp.epochs": 100}
    done(top / "resnet18" / "plain", mode_and_bits("plain", 8, 8) | plain, 70.0, 69.75)
    done(top / "resnet18" / "acnet", mode_and_bits("repq_bn", 8, 8) | acnet, 71.0, 71.125)
    # Another schedule, an earlier run of the same configuration, a row without a configuration.
    done(top / "short", mode_and_bits("merged", 8, 8) | {"fp.epochs": 8}, 60.0, 59.0)
    done(top / "earlier", mode_and_bits("repq_bn", 8, 8), 72.0, 65.0, finished="2025-12-31T12:00:00+00:00")
    old = row_of(config_of(mode_and_bits("merged", 8, 8)), 72.0, 70.0)
    write_run(top / "old", None, {key: value for key, value in old.items() if key not in ("time", "cost", "task")})
    # Killed: without a row, and with half of one.
    write_run(top / "killed", config_of(mode_and_bits("repq_bn", 2, 2)))
    write_run(top / "half", config_of(mode_and_bits("repq_bnest", 2, 2)), json.dumps(old)[:200])
    write_run(top / "empty_row", None, "{}")
    for mode, bits, value in (("plain", 8, 36.5), ("repq", 8, 36.75), ("plain", 4, 35.0), ("repq", 4, 35.125)):
        changes = mode_and_bits(mode, bits, bits) | SUPER_RESOLUTION
        done(top / "pictures" / f"{mode}-{bits}", changes, 36.625 + (mode == "repq") / 8, value)
    methods = {
        "float": (32, 32, "lsq", "lsq", 99.25),
        "int8": (8, 8, "affine", "affine", 99.0),
        "ternary": (2, 32, "twn", "lsq", 98.5),
        "binary": (1, 1, "sign", "sign", 97.5),
    }
    for name, (weight, act, weight_method, act_method, value) in methods.items():
        quantizer = {"quant.weight_method": weight_method, "quant.act_method": act_method}
        data = {"data.name": "mnist", "data._target_": "repq_cli.data.torchvision_sets.mnist"}
        done(top / "survey" / name, mode_and_bits("plain", weight, act) | plain | data | quantizer, 99.25, value)


README = """\
Run folders for tests of `repq table`. Every number in them is made up: nothing was trained.

They are written by `tests/synthetic_runs.py`; run that file to renew them, then, in `tests/`, the tables made of them:

    repq table table_rows > golden/table.md
    repq table table_rows --format latex > golden/table.tex
"""


def printed(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    """What ``repq table`` prints; of a mistake, what it complains of."""
    capsys.readouterr()
    assert main(["table", *map(str, arguments)]) == code
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return out if code == 0 else err


def lines_with(text: str, *words: str) -> list[str]:
    """The lines that have all of ``words``."""
    return [line for line in text.splitlines() if all(word in line for word in words)]


def overview(capsys: pytest.CaptureFixture[str], *paths: Path) -> str:
    return printed(capsys, *paths, "--table", "overview")


if __name__ == "__main__":
    shutil.rmtree(ROWS, ignore_errors=True)
    write_all(ROWS)
    (ROWS / "README.md").write_text(README)
