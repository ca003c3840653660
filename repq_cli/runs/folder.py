"""The folder of a run: what its files are called, and how those that others read are written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import yaml

from repq_cli.errors import DataError
from repq_cli.files import Taken, link, locked, parsed_json, read_regular, write_atomically, write_json
from repq_cli.runs.row import Row, prune
from repq_cli.text import command
from repq_cli.yaml_text import LARGEST as LARGEST_CONFIG
from repq_cli.yaml_text import parsed_yaml

CONFIG, ROW, LOG, FP_NET, LOCK = "config.yaml", "summary.json", "metrics.jsonl", "fp.pt", ".lock"
CHECKPOINTS, DEPLOY, CROPS, EXPORT, DIAGNOSE, TENSORBOARD = "checkpoints", "deploy", "crops", "export", "diagnose", "tb"
TRACKED = {"mlruns", "wandb"}  # what other programs keep below outputs/
INNER = {CHECKPOINTS, DEPLOY, CROPS, EXPORT, DIAGNOSE, TENSORBOARD, *TRACKED}  # folders that hold no other run
REPLACED = {CHECKPOINTS, DEPLOY}  # folders whose files are replaced and never changed, so that runs may share them
OWN = (LOCK, CONFIG, ROW)  # what identical runs do not share
DIAGNOSIS = "diagnosis.json"  # in DIAGNOSE, or in a folder that the command line names
BENCH = "bench.json"  # of several runs, in a folder of its own
WEIGHTS_FORMAT = 1


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; DataError if another process does."""
    refuse_links([folder / LOCK])
    try:
        with locked(folder / LOCK):
            yield
    except Taken:
        raise DataError(f"Another process is working in {folder}: wait for it, or choose another folder.") from None


def refuse_links(paths: Iterable[Path]) -> None:
    """Raise DataError for one of the paths that is a link: a folder that somebody sent may have it lead anywhere."""
    for path in paths:
        if path.is_symlink():
            raise DataError(
                f"{path} is a link to {os.readlink(path)}, and writing there would change that: put what it leads to "
                f"in its place, or remove it."
            )


class RunFolder:
    """One run's folder, which need not exist.

    config_file  the resolved configuration     env_file      what it was made with: versions, processor, git state
    data_file    what its data consists of
    row_file     what came of the run           weights_file  histograms of its weights
    log_file     an object a step or epoch      printed_file  what was said
    scalars_file metrics.csv of runtime.trackers=[csv]
    tensorboard  TensorBoard's events           crops         pictures of each evaluation set
    fp, best     the FP and the quantization-aware net with the best validation score
    last         all that is needed to go on; previous: the one before, in case it is lost
    deploy       the network that ships         export        what ``repq export`` writes; onnx: its file
    diagnose     what ``repq diagnose`` writes
    fp_again     where the FP stage is made once more, after its checkpoint was damaged
    """

    def __init__(self, path: Path | str) -> None:
        self.path = path = Path(path)
        self.config_file, self.row_file, self.env_file = path / CONFIG, path / ROW, path / "env.json"
        self.data_file = path / "data.json.gz"
        self.log_file, self.printed_file, self.tensorboard = path / LOG, path / "train.log", path / TENSORBOARD
        self.scalars_file = path / "metrics.csv"
        self.checkpoints = path / CHECKPOINTS
        self.fp, self.best = self.checkpoints / FP_NET, self.checkpoints / "best.pt"
        self.last, self.previous = self.checkpoints / "last.pt", self.checkpoints / "previous.pt"
        self.deploy, self.export, self.crops = path / DEPLOY, path / EXPORT, path / CROPS
        self.onnx, self.diagnose = self.export / "model.onnx", path / DIAGNOSE
        self.weights_file, self.fp_again = path / "weights.json", path / ".fp-again"

    def __str__(self) -> str:
        return str(self.path)

    @property
    def is_used(self) -> bool:
        """Whether a run has begun here."""
        return os.path.lexists(self.config_file)

    def refuse_links(self) -> None:
        """Raise DataError where what a run appends to, or writes into, is a link; other files are replaced."""
        names = (LOCK, LOG, self.printed_file.name, self.scalars_file.name, self.fp_again.name, *INNER)
        refuse_links([*(self.path / name for name in names), *self.crops.glob("*")])

    def read_config(self) -> dict[str, Any]:
        """The configuration. Raises DataError if it is missing or damaged."""
        try:
            config = parsed_yaml(read_regular(self.config_file, LARGEST_CONFIG))
            if not isinstance(config, dict) or not isinstance(config.get("runtime"), dict):
                raise ValueError("it is no configuration of a run")
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            raise DataError(f"{self.config_file} cannot be read ({error}): restore it, or start a new run.") from error
        return config

    def write_config(self, config: dict[str, Any]) -> None:
        """Write the configuration."""
        write_atomically(self.config_file, yaml.safe_dump(config, sort_keys=False).encode())

    def read_row(self) -> Row | None:
        """The row, or None where there is none yet. Raises DataError if it is damaged, or not to be read."""
        try:
            return parsed_json(read_regular(self.row_file))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except PermissionError as error:
            raise DataError(f"{self.row_file} cannot be read ({error.strerror}): name a run that can.") from error
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self.row_file} is damaged ({error}): {command('train', f'resume={self.path}')} makes it again."
            ) from error

    def readable_row(self) -> Row:
        """The row, empty where there is none that can be read."""
        try:
            return self.read_row() or {}
        except DataError:
            return {}

    @property
    def status(self) -> str | None:
        """What the row says of how the run ended; None where there is no row that can be read."""
        status = self.readable_row().get("status")
        return status if isinstance(status, str) else None

    def write_row(self, row: Row) -> None:
        """Write the row; what was not measured (None, or not a finite number) is left out."""
        write_json(self.row_file, prune(row))

    def read_env(self) -> dict[str, Any] | None:
        """What the run was made with, or None where that is not known, or not any more."""
        try:
            env = parsed_json(read_regular(self.env_file))
        except (OSError, ValueError):
            return None
        kinds = {"command_line": str, "started": str, "git": dict | None}
        return env if all(isinstance(env.get(key), kind) for key, kind in kinds.items()) else None

    def write_env(self, env: dict[str, Any]) -> None:
        """Write what the run was made with."""
        write_json(self.env_file, env)

    def write_weights(self, layers: Sequence[dict[str, Any]]) -> None:
        """Write weights.json, a line for each layer; nothing where there is none. Equal layers give equal bytes."""
        if layers:
            lines = ",\n".join(json.dumps(layer, separators=(",", ":"), allow_nan=False) for layer in layers)
            write_atomically(self.weights_file, f'{{"format": {WEIGHTS_FORMAT}, "layers": [\n{lines}\n]}}\n'.encode())

    def crops_of(self, name: str) -> CropFolder:
        """Where the pictures of an evaluation set belong."""
        return CropFolder(self.crops / _quoted(name))

    def all_crops(self) -> Iterator[CropFolder]:
        """The pictures of every set."""
        return (CropFolder(path) for path in sorted(self.crops.glob("*")) if path.is_dir())

    def adopt(self, twin: RunFolder) -> None:
        """Take the files of an identical run, but for what is each run's own: by links where files never change."""

        def link_or_copy(source: str, target: str) -> None:
            if Path(source).relative_to(twin.path).parts[0] in REPLACED:
                link(Path(source), Path(target))
            else:
                shutil.copyfile(source, target)

        own = shutil.ignore_patterns(*OWN)
        shutil.copytree(twin.path, self.path, ignore=own, copy_function=link_or_copy, dirs_exist_ok=True)


class CropFolder:
    """Pictures of one evaluation set, and what the networks that made them reach on all of it."""

    def __init__(self, path: Path) -> None:
        self.path, self.values, self.name = path, path / "values.json", unquote(path.name)

    def picture(self, label: str) -> Path:
        """``original``, ``bicubic``, ``fp`` or ``deployed``."""
        return self.path / f"{label}.png"


def folders_with(names: set[str], top: Path, refused: Callable[[OSError], object] | None = None) -> Iterator[Path]:
    """The folders at and below ``top`` that hold a file of one of ``names``, without looking inside runs.

    refused: is told of each that cannot be read.
    """
    for folder, below, files in os.walk(top, onerror=refused):
        below[:] = [name for name in below if name not in INNER and not name.startswith(".")]
        if names & set(files):
            yield Path(folder)


def _quoted(name: str) -> str:
    """``name`` as that of a folder, which ``urllib.parse.unquote`` gives back; no dots alone, which lead elsewhere.

    >>> _quoted("Set 5/x2"), _quoted("..")
    ('Set%205%2Fx2', '%2E%2E')
    """
    return quote(name, safe="") if name.strip(".") else name.replace(".", "%2E")
