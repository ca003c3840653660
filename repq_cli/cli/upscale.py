"""``repq upscale``: image files enlarged by the deployed network of a super-resolution run."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from repq_cli.devices import use_device
from repq_cli.errors import ConfigError, DataError
from repq_cli.files import make_folder
from repq_cli.finished_run import FinishedRun
from repq_cli.images.files import UNREADABLE, list_folder, pixels_of, write_png
from repq_cli.images.resize import enlarge, to_bytes
from repq_cli.tasks.super_resolution import SuperResolution

NAMED = 5  # images that a message names


def upscale_job(config: dict[str, Any]) -> None:
    """Enlarge every image. Raises DataError at the end, naming those that could not be read; the others are written."""
    run = FinishedRun(config["run"])
    net = run.deployed
    if net.graph["task"] != "super_resolution":
        raise ConfigError(f"run={run.folder} is of task={net.graph['task']}: upscale needs a run of super-resolution.")
    targets = _targets(config["in"], Path(config["out"]), config["overwrite"])
    if config["threads"] is not None:
        torch.set_num_threads(config["threads"])
    device = use_device(config["device"], "device")
    net = net.to(device)
    task = SuperResolution(net.graph["scale"], net.graph["colour"])
    started, refused = time.perf_counter(), []
    hidden = not sys.stderr.isatty() or config["verbosity"] == "quiet"
    for source, target in tqdm(targets.items(), desc="upscale", unit="image", disable=hidden):
        try:
            image = _read(source)
        except DataError as error:
            refused.append(str(error))
            continue
        _write(target, _enlarged(image, net, task, device, config["tile"]))
    done = len(targets) - len(refused)
    if done and config["verbosity"] != "quiet":
        seconds = time.perf_counter() - started
        print(f"{done} image{'s' * (done > 1)} x{task.scale} in {seconds:.1f} s, in {config['out']}")
    if refused:
        more = f"\n  and {len(refused) - NAMED} more" if len(refused) > NAMED else ""
        raise DataError(
            f"{len(refused)} of {len(targets)} images are left out:\n  " + "\n  ".join(refused[:NAMED]) + more
        )


def _targets(given: str | list[str], out: Path, overwrite: bool) -> dict[Path, Path]:
    """Where each image goes. DataError, before anything is read, for what is missing, taken, or claimed by two."""
    targets: dict[Path, Path] = {}
    entries = [given] if isinstance(given, str) else given
    if not entries or not all(entries) or out == Path(""):
        raise ConfigError("in= takes an image, a folder or a list of them, and out= a folder: one of them is empty.")
    for entry in entries:
        path = Path(entry)
        if path.is_dir() and out.resolve().is_relative_to(path.resolve()) and out.resolve() != path.resolve():
            raise DataError(f"out={out} lies inside in={entry}, where it would be enlarged again: name another folder.")
        if path.is_dir():
            listed = {source: source.relative_to(path) for source in list_folder(path)}
        elif path.is_file():
            listed = {path: Path(path.name)}
        else:
            raise DataError(f"in={entry} is neither an image nor a folder: name one that is there.")
        targets |= {source: out / name.with_suffix(".png") for source, name in listed.items()}
    originals = {source.resolve() for source in targets}
    sources: dict[Path, Path] = {}
    for source, target in targets.items():
        if target in sources:
            raise DataError(
                f"{sources[target]} and {source} would both become {target}: enlarge them into two folders."
            )
        sources[target] = source
        if target.resolve() in originals:
            raise DataError(f"out={out} would replace {target}, an image to be enlarged: name another folder.")
        if target.exists() and not overwrite:
            raise DataError(f"{target} is there already: name another folder as out=, or set overwrite=true.")
    return targets


def _read(path: Path) -> Image.Image:
    """The decoded image, upright, in 8 bits; DataError if it is broken or has more."""
    try:
        with Image.open(path) as opened:
            if opened.mode.startswith(("I", "F")) or any(map(_deep, opened.tile)):
                raise DataError(
                    f"{path} has more than 8 bits a channel, which would be lost: convert it to 8 bit first."
                )
            return ImageOps.exif_transpose(opened)
    except UNREADABLE as error:
        raise DataError(f"{path} cannot be decoded: {error}.") from error


def _deep(tile: Any) -> bool:
    """Whether Pillow's decoder is told of more than 8 bits: by its raw mode, or, for PPM, by the largest value."""
    decoder, arguments = tile[0], tile[3] if isinstance(tile[3], tuple) else (tile[3],)
    largest = arguments[1] if decoder.startswith("ppm") and len(arguments) > 1 else 0
    return ";16" in str(arguments[0]) or (isinstance(largest, int) and largest > 255)


def _enlarged(image: Image.Image, net: Any, task: SuperResolution, device: torch.device, tile: int) -> Tensor:
    """``uint8 [C, s h, s w]``: grey stays grey, and transparency is enlarged bicubically beside the colours."""
    transparent = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
    full = pixels_of(image.convert("RGBA"))
    _, rgb = task.upscale(net, full[:3].to(device), tile)
    colours = to_bytes(rgb.cpu())
    if image.mode in ("L", "LA", "1"):
        colours = to_bytes(colours.float().mean(0, keepdim=True))
    return torch.cat([colours, to_bytes(enlarge(full[3:], task.scale))]) if transparent else colours


def _write(target: Path, pixels: Tensor) -> None:
    make_folder(target.parent)
    write_png(target, pixels)
