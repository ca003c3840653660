"""``repq predict``: the classes of image files by a network of a finished run."""

from __future__ import annotations

import csv
import glob
import io
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from repq_cli import build
from repq_cli.cli.engines import networks
from repq_cli.cli.terminal import say
from repq_cli.command_keys import PredictKeys
from repq_cli.config import section_of
from repq_cli.devices import use_device
from repq_cli.errors import CheckError, ConfigError, DataError
from repq_cli.files import make_folder, write_atomically, write_json
from repq_cli.finished_run import FinishedRun
from repq_cli.images.listing import is_image, list_folder, on_lines, some
from repq_cli.quant.frozen_layers import frozen_layers
from repq_cli.report.render.data import cell

BATCH = 64  # images
READERS = 2  # threads that decode
MOST = 5  # classes of an image
Guess = tuple[str, float]


@dataclass(frozen=True)
class Prediction:
    """What a network says of an image: classes with their probabilities, the likeliest first; or what is wrong."""

    path: Path
    guesses: list[Guess] = field(default_factory=list)
    error: str = ""


def predict_job(tree: dict[str, Any]) -> None:
    """Write a line for every image. Raises DataError at the end, naming those that could not be read."""
    asked = section_of(PredictKeys, tree)
    run = FinishedRun(asked.run, asked.plugins)
    if run.row["task"] != "classification":
        raise ConfigError(f"run={run.folder} is of task={run.row['task']}: enlarge images by repq upscale.")
    out = Path(asked.out)
    write = _writer(out, asked.overwrite)
    paths = _paths(asked.in_)
    if asked.threads is not None:
        torch.set_num_threads(asked.threads)
    device = use_device(asked.device, "device")
    ((_, net),) = networks(run, asked.engine, device, asked.threads)
    started = time.perf_counter()
    hidden = not sys.stderr.isatty() or asked.verbosity == "quiet"
    found = list(
        tqdm(_predictions(run, net.eval(), paths, device, asked.max_pixels), "predict", len(paths), disable=hidden)
    )
    make_folder(out.parent)
    write(out, found)
    wrong = [prediction.error for prediction in found if prediction.error]
    if asked.verbosity != "quiet":
        counts = Counter(prediction.guesses[0][0] for prediction in found if prediction.guesses)
        said = some(f"{name} ({count})" for name, count in counts.most_common()) or "none could be read"
        say(f"{len(found)} image{'s' * (len(found) > 1)} in {time.perf_counter() - started:.1f} s: {said}; in {out}")
    if wrong:
        raise DataError(f"{len(wrong)} of {len(found)} images have no class, and stand in {out}:{on_lines(wrong)}")


def _predictions(
    run: FinishedRun, net: nn.Module, paths: list[Path], device: torch.device, max_pixels: int
) -> Iterator[Prediction]:
    """In the order of the paths. Pixels are read as the run's data reads those that it is measured on."""
    graph = run.deployed.graph
    read = build.image_reader(run.config, run.inputs, max_pixels)
    mean, std = (torch.tensor(graph[key], device=device).view(-1, 1, 1) for key in ("mean", "std"))

    def tried(path: Path) -> Tensor | DataError:
        try:
            return read(path)
        except DataError as error:
            return error

    with ThreadPoolExecutor(READERS) as pool, torch.no_grad(), frozen_layers(net):
        for start in range(0, len(paths), BATCH):
            some_paths = paths[start : start + BATCH]
            images = dict(zip(some_paths, pool.map(tried, some_paths), strict=True))
            whole = {path: image for path, image in images.items() if isinstance(image, Tensor)}
            answers = {}
            if whole:
                x = torch.stack(list(whole.values())).to(device).float().div_(255).sub_(mean).div_(std)
                answers = dict(zip(whole, _guesses(net(x), graph["classes"]), strict=True))
            for path, image in images.items():
                yield Prediction(path, answers.get(path, []), "" if isinstance(image, Tensor) else str(image))


def _guesses(outputs: Tensor, classes: list[str]) -> Iterator[list[Guess]]:
    """The likeliest classes of each image, of those that the network was trained on."""
    probabilities = outputs.cpu().double().softmax(1)
    if not torch.isfinite(probabilities).all():
        raise CheckError("The network's outputs are not finite: it has diverged; repq diagnose says where.")
    names = [*classes, *(f"class {number}" for number in range(len(classes), outputs.shape[1]))]
    for values, numbers in zip(*probabilities.topk(min(MOST, len(names)), 1), strict=True):
        yield [(names[number], value) for number, value in zip(numbers.tolist(), values.tolist(), strict=True)]


def _paths(given: str | list[str]) -> list[Path]:
    """The images that files, folders and patterns name, each once. DataError for what names none."""
    found: list[Path] = []
    entries = [given] if isinstance(given, str) else given
    if not entries or not all(entries):
        raise ConfigError("in= takes an image, a folder, a pattern or a list of them: one of them is empty.")
    for entry in entries:
        path = Path(entry)
        if path.is_dir():
            found += list_folder(path)
        elif path.is_file():
            found.append(path)
        elif glob.has_magic(entry):
            matched = [name for name in map(Path, sorted(glob.glob(entry, recursive=True))) if is_image(name)]
            if not matched:
                raise DataError(f"in={entry} matches no image: name a folder, or another pattern.")
            found += matched
        else:
            raise DataError(f"in={entry} is neither an image nor a folder nor a pattern: name one that is there.")
    return list(dict.fromkeys(found))


def _writer(out: Path, overwrite: bool) -> Callable[[Path, list[Prediction]], None]:
    """What writes a file of this ending; refused before anything is read."""
    writers = {".csv": _write_csv, ".json": _write_json}
    if out.suffix.lower() not in writers:
        raise ConfigError(f"out={out} ends in neither .csv nor .json, which say how it is written: name such a file.")
    if out.exists() and not overwrite:
        raise DataError(f"{out} is there already: name another file as out=, or set overwrite=true.")
    return writers[out.suffix.lower()]


def _write_csv(out: Path, found: list[Prediction]) -> None:
    """File, class and probability, the next likeliest alike, and what is wrong with the file."""
    columns = max((len(prediction.guesses) for prediction in found), default=1) or 1
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    names = [
        "class",
        "probability",
        *(f"{name}_{n}" for n in range(2, columns + 1) for name in ("class", "probability")),
    ]
    writer.writerow(["file", *names, "error"])
    for each in found:
        guesses = [value for name, share in each.guesses for value in (cell(name), share)]
        empty = [""] * (2 * columns - len(guesses))
        writer.writerow([cell(str(each.path)), *guesses, *empty, cell(each.error)])
    write_atomically(out, written.getvalue().encode())


def _write_json(out: Path, found: list[Prediction]) -> None:
    """A list with an object for each image: file, class, probability, top; or file and error."""
    write_json(out, [_as_json(prediction) for prediction in found])


def _as_json(each: Prediction) -> dict[str, Any]:
    if not each.guesses:
        return {"file": str(each.path), "error": each.error}
    top = [{"class": name, "probability": share} for name, share in each.guesses]
    return {"file": str(each.path), **top[0], "top": top}
