"""``repq upscale``: image files enlarged by the deployed network of a super-resolution run."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from repq_cli.command_keys import UpscaleKeys
from repq_cli.config import section_of
from repq_cli.devices import use_device
from repq_cli.errors import ConfigError, DataError
from repq_cli.files import make_folder
from repq_cli.finished_run import FinishedRun
from repq_cli.images.decode import decode
from repq_cli.images.files import pixels_of, write_png
from repq_cli.images.listing import list_folder, on_lines
from repq_cli.images.resize import enlarge, to_bytes
from repq_cli.memory import require_memory
from repq_cli.tasks.super_resolution import SuperResolution


def upscale_job(tree: dict[str, Any]) -> None:
    """Enlarge every image. Raises DataError at the end, naming those that could not be read; the others are written."""
    asked = section_of(UpscaleKeys, tree)
    run = FinishedRun(asked.run)
    net = run.deployed
    if net.graph["task"] != "super_resolution":
        raise ConfigError(f"run={run.folder} is of task={net.graph['task']}: upscale needs a run of super-resolution.")
    targets = _targets(asked.in_, Path(asked.out), asked.overwrite)
    if asked.threads is not None:
        torch.set_num_threads(asked.threads)
    device = use_device(asked.device, "device")
    net = net.to(device)
    task = SuperResolution(net.graph["scale"], net.graph["colour"])
    started, refused = time.perf_counter(), []
    hidden = not sys.stderr.isatty() or asked.verbosity == "quiet"
    for source, target in tqdm(targets.items(), desc="upscale", unit="image", disable=hidden):
        try:
            image = decode(source, deep=False, max_pixels=asked.max_pixels, key="max_pixels")
            _require_memory(source, image, task.scale)
        except (DataError, ConfigError) as error:
            refused.append(str(error))
            continue
        _write(target, _enlarged(image, net, task, device, asked.tile))
    done = len(targets) - len(refused)
    if done and asked.verbosity != "quiet":
        seconds = time.perf_counter() - started
        print(f"{done} image{'s' * (done > 1)} x{task.scale} in {seconds:.1f} s, in {asked.out}")
    if refused:
        raise DataError(f"{len(refused)} of {len(targets)} images are left out:{on_lines(refused)}")


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


def _require_memory(source: Path, image: Image.Image, scale: int) -> None:
    """ConfigError for a picture whose enlarged colours, as floats and as bytes, are more than memory holds."""
    width, height = (scale * side for side in image.size)
    require_memory(15 * width * height, f"{source}, enlarged to {width}x{height},", "cut it into parts")


def _enlarged(image: Image.Image, net: Any, task: SuperResolution, device: torch.device, tile: int) -> Tensor:
    """``uint8 [C, s h, s w]``: grey stays grey, and transparency is enlarged bicubically beside the colours."""
    full = pixels_of(image.convert("RGBA"))
    _, rgb = task.upscale(net, full[:3].to(device), tile)
    colours = to_bytes(rgb.cpu())
    if image.mode in ("L", "LA"):
        colours = to_bytes(colours.float().mean(0, keepdim=True))
    return torch.cat([colours, to_bytes(enlarge(full[3:], task.scale))]) if "A" in image.mode else colours


def _write(target: Path, pixels: Tensor) -> None:
    make_folder(target.parent)
    write_png(target, pixels)
