"""What was probably meant by words of other programs: ``--epochs 3``, ``amp=true``, ``--dry-run``.

Neither Hydra nor torch is needed to know that.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from repq_cli.config import keys_of, section_type
from repq_cli.effects import OF_DATA
from repq_cli.problems import Problem
from repq_cli.schema import KEYS
from repq_cli.text import shortened
from repq_cli.typecheck import nearest

LONGEST_NAME = 200  # of a group: a file system has none of more than 255

HYDRA_FLAGS = (
    *("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--resolve", "--package", "-p", "--run", "-r"),
    *("--multirun", "-m", "--shell-completion", "-sc", "--config-dir", "-cd", "--info", "-i"),
)
OFFERED_FLAGS = ("--help", "--multirun", "--cfg", "--info", "--hydra-help", "--config-dir", "--package", "--resolve")

# Words of other programs: what we write instead, with {} for the value. A word alone is the name of a key.
MEANT = {
    "lr": "fp.lr={} qat.lr={}",
    "learning_rate": "fp.lr={} qat.lr={}",
    "epochs": "fp.epochs={} qat.epochs={}",
    "e": "fp.epochs={} qat.epochs={}",
    "max_epochs": "fp.epochs={} qat.epochs={}",
    "num_epochs": "fp.epochs={} qat.epochs={}",
    "bs": "data.batch_size={}",
    "b": "data.batch_size={}",
    "batch": "data.batch_size={}",
    "batch_size": "data.batch_size={}",
    "early_stopping": "qat.patience={}",
    "patience": "fp.patience={} qat.patience={}",
    "amp": "runtime.precision=bf16",
    "bf16": "runtime.precision=bf16",
    "half": "runtime.precision=bf16",
    "fp16": "runtime.precision=fp16",
    "mixed_precision": "runtime.precision=bf16",
    "precision": "runtime.precision={}",
    "tf32": "runtime.matmul=high",
    "device": "runtime.device={}",
    "gpu": "runtime.device=cuda",
    "gpus": "runtime.device=cuda",
    "cuda": "runtime.device=cuda",
    "cpu": "runtime.device=cpu",
    "no_cuda": "runtime.device=cpu",
    "workers": "data.workers={}",
    "num_workers": "data.workers={}",
    "j": "data.workers={}",
    "threads": "runtime.threads={}",
    "compile": "runtime.compile=true",
    "torch_compile": "runtime.compile=true",
    "tensorboard": "runtime.tensorboard={}",
    "wandb": "runtime.trackers=[wandb]",
    "mlflow": "runtime.trackers=[mlflow]",
    "csv": "runtime.trackers=[csv]",
    "tracker": "runtime.trackers=[{}]",
    "trackers": "runtime.trackers=[{}]",
    "logger": "runtime.trackers=[{}]",
    "log_every": "runtime.log_every={}",
    "log_interval": "runtime.log_every={}",
    "wd": "optim.weight_decay={}",
    "weight_decay": "optim.weight_decay={}",
    "momentum": "optim.momentum={}",
    "label_smoothing": "optim.label_smoothing={}",
    "clip": "optim.clip_norm={}",
    "clip_grad": "optim.clip_norm={}",
    "optimizer": "optim={}",
    "opt": "optim={}",
    "scheduler": "schedule={}",
    "sched": "schedule={}",
    "warmup": "schedule.warmup_epochs={}",
    "warmup_epochs": "schedule.warmup_epochs={}",
    "bits": "quant.weight_bits={} quant.act_bits={}",
    "arch": "+model={}",
    "a": "+model={}",
    "model_name": "+model={}",
    "net": "+model={}",
    "block": "rep={}",
    "width": "model.width={}",
    "dataset": "data={}",
    "data_path": "data.root={}",
    "data_dir": "data.root={}",
    "root": "data.root={}",
    "img_size": "data.size={}",
    "image_size": "data.size={}",
    "download": "data.download=true",
    "checkpoint": "fp.checkpoint={}",
    "ckpt": "fp.checkpoint={}",
    "pretrained": "fp.checkpoint={}",
    "weights": "fp.checkpoint={}",
    "teacher": "qat.teacher=fp",
    "output": "hydra.run.dir={}",
    "output_dir": "hydra.run.dir={}",
    "out": "hydra.run.dir={}",
    "o": "hydra.run.dir={}",
    "save_dir": "hydra.run.dir={}",
    "name": "hydra.run.dir=outputs/train/{}",
    "verbose": "verbosity=debug",
    "v": "verbosity=debug",
    "quiet": "verbosity=quiet",
    "q": "verbosity=quiet",
    "silent": "verbosity=quiet",
    "no_cache": "fp.reuse=false",
    "dry_run": "--cfg job (shows the configuration) or fast_dev_run=true (two steps of everything)",
    "n": "--cfg job (shows the configuration) or fast_dev_run=true (two steps of everything)",
    "debug": "fast_dev_run=true, or HYDRA_FULL_ERROR=1 in front of the command for tracebacks",
    "help_all": "--help (groups and keys) or --cfg job (every key with its value)",
    "print_config": "--cfg job",
    "config": "experiment=NAME, or --config-dir DIR with files of your own",
    "evaluate": "another command: repq eval run=DIR",
    "test": "another command: repq eval run=DIR",
    "predict": "another command: repq predict run=DIR in=IMAGES out=FILE.csv",
    "export": "another command: repq export run=DIR",
    "resume": "resume={}",
    "seed": "seed={}",
    "model": "+model={}",
    "data": "data={}",
    "quant": "quant={}",
    "mode": "mode={}",
    "run": "run={}",
}


def of_flag(flag: str, value: str, command: str) -> str:
    """What is wrong with a flag that there is not, as a sentence."""
    word = re.sub("^-+", "", flag)
    meant = _meant(word, value, command) or _key_of(word, command)
    near = difflib.get_close_matches(flag, [name for name in HYDRA_FLAGS if name.startswith("--")], 1, 0.7)
    if meant is None and near:
        return f"There is no flag {shortened(flag)}; did you mean {near[0]}?"
    hint = f"write {meant}" if meant else f"options are key=value, and repq {command} --help lists the keys"
    return f"There is no flag {shortened(flag)}: {hint}."


def of_key(key: str, value: str, command: str) -> str | None:
    """What was meant by a key that there is not, or None."""
    name = key.lstrip("+")
    if name.startswith("data.") and name.removeprefix("data.") in OF_DATA:
        return "data=NAME beside it, for data that has such a key"
    meant = _meant(name.rpartition(".")[2], value, command)
    return None if meant is None or meant.lstrip("+").partition("=")[0] == name else meant


def _meant(word: str, value: str, command: str) -> str | None:
    """What a word of other programs is here, with its value, where the command has such a key."""
    found = MEANT.get(word.lower().replace("-", "_"))
    if found is None:
        return None
    keys = KEYS.get(command, {})
    wanted = re.findall(r"(?:^|\s)\+?([a-z_]+)[.=]", found)
    if not all(key in keys or (command == "train" and key in ("hydra", "resume")) for key in wanted):
        own = word.lower().replace("-", "_")
        return f"{own}={value or '…'}" if own in keys else None
    return found.replace("{}", shortened(value, 40) if value and value not in ("true", "false") else "…")


def _key_of(word: str, command: str) -> str | None:
    """The keys of the command that end in a word, as they are written."""
    name = word.replace("-", "_")
    keys = [key for key in all_keys(command) if key == name or key.endswith(f".{name}")]
    return " ".join(f"{key}=…" for key in keys[:3]) or None


def all_keys(command: str) -> Iterator[str]:
    """The keys of a command, of all sections; of data those that any has."""
    for key, annotation in KEYS[command].items():
        yield key
        section = section_type(annotation)
        if section is not None:
            yield from (f"{key}.{name}" for name in keys_of(section) if name != "_target_")
        if key == "data":
            yield from (f"data.{name}" for name in OF_DATA)


def nearest_key(key: str, tree: dict[str, Any]) -> str:
    """The known key that was probably meant: by its whole path, else by its last word."""
    keys = list(_keys(tree))
    near = nearest(key, keys)
    if near is None or key.rpartition(".")[2] != near.rpartition(".")[2]:
        last = nearest(key.rpartition(".")[2], {known.rpartition(".")[2] for known in keys})
        near = near or next((known for known in keys if known.rpartition(".")[2] == last), None)
    return f"; did you mean '{near}'?" if near else f"; the sections are {', '.join(tree)}"


def _keys(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")


def unknown_sections(
    overrides: Iterable[str], command: str, options: Callable[[str], Sequence[str]]
) -> Iterator[Problem]:
    """Settings of sections that no configuration of a command has; options: of a group, none where it is none."""
    sections = KEYS[command]
    for text in overrides:
        key, _, value = text.lstrip("+~").partition("=")
        section = re.split(r"[./@]", key)[0]
        known = section in (*sections, "hydra", "experiment") or len(section) >= LONGEST_NAME
        if known or options(section):
            continue
        meant, near = of_key(key, value, command), nearest(section, ["model", "experiment"])
        near = near or nearest(section, sections)
        hint = f"did you mean '{near}'?" if near else f"repq {command} --help shows those there are"
        yield Problem(key, value, f"is an unknown key; {f'write {meant}' if meant else hint}")
