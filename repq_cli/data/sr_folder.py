"""``data=sr_folder``: folders of photographs for super-resolution, such as DIV2K, and any evaluation sets."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

from tqdm import tqdm

from repq_cli.bounds import Range
from repq_cli.data.base import Data, Evaluation, Inputs
from repq_cli.data.pictures import Pair, Patches, PictureInfo, Pictures, Upscaling, cropped, pair_of
from repq_cli.errors import DataError
from repq_cli.images.decode import MAX_PIXELS, PILLOWS_MOST, ImageError
from repq_cli.images.few import few
from repq_cli.images.files import read_rgb
from repq_cli.images.listing import list_folder, on_lines, some
from repq_cli.images.resize import LowRounding

logger = logging.getLogger("repq")

Folders = str | list[str]


def describe(upscaling: Upscaling) -> Inputs:
    """What a network must know, without reading anything."""
    return upscaling.inputs("sr_folder")


def load(
    upscaling: Upscaling,
    train: Folders | None = None,
    train_lr: Folders | None = None,
    val: str | None = None,
    val_lr: str | None = None,
    val_images: Annotated[int, Range(1)] = 5,
    test: dict[str, str] | None = None,
    test_lr: dict[str, str] | None = None,
    patch: Annotated[int, Range(8)] = 48,
    patches: Annotated[int, Range(1)] = 3200,
    low_rounding: LowRounding = "each_pass",
    max_pixels: Annotated[int, Range(1, PILLOWS_MOST)] = MAX_PIXELS,
) -> Data:
    """Photographs of the folders ``train`` to train on, of ``val`` to validate, and of every set of ``test``.

    Without ``val``, ``val_images`` of the training photographs are held out. ``*_lr``: folders with the same pictures
    at low resolution, ``0001.png`` or ``0001x2.png`` for ``0001.png``; without them MATLAB's bicubic makes them.
    low_rounding: after each pass of that, as MATLAB rounds bytes, or once at the end.
    patch: low-resolution pixels a side of the crops that training draws. patches: how many make an epoch.
    Pictures that are broken, of more than ``max_pixels``, or smaller than a patch in training, are left out and named.
    Raises DataError where none is left, a folder is missing or empty, or pictures of both resolutions do not pair.
    """
    if train is None or test is None:
        missing = "train" if train is None else "test"
        example = "DIR or [DIR,DIR]" if train is None else "'{set5: DIR}'"
        raise ValueError(f"data.{missing}=null has to be set: folders with photographs, data.{missing}={example}.")
    if not all([train] if isinstance(train, str) else train) or not train:
        raise ValueError(f"data.train={train} names no folder: name one with photographs.")
    if val is None and val_lr is not None:
        raise ValueError(f"data.val_lr={val_lr} needs data.val, the same pictures at full resolution.")
    folders = _with_low(train, train_lr)
    listed = _once(entry for folder, low in folders for entry in _listed(folder, low, upscaling.scale))
    held: list[Entry] = []
    if val is None:
        every = max(1, len(listed) // val_images)
        held = listed[every // 2 :: every][:val_images]
        listed = [entry for entry in listed if entry not in held]
    else:
        held = _listed(Path(val), None if val_lr is None else Path(val_lr), upscaling.scale)
    if not listed:
        raise DataError(f"data.train={train} holds too few photographs to hold data.val_images={val_images} out.")
    info = PictureInfo("sr_folder", upscaling, "the user's own")
    read = functools.partial(_pairs, upscaling=upscaling, low_rounding=low_rounding, max_pixels=max_pixels)
    crops = Patches(read(listed, what=f"data.train={train}", patch=patch), upscaling, patch, patches)
    least = patch if val is None else 0  # what training would leave out is not held out either
    checked = Pictures(list(read(held, what="the validation pictures", patch=least)), upscaling)
    return Data(info, crops, checked, evaluation_sets(upscaling, test, test_lr, low_rounding, max_pixels))


def evaluation_sets(
    upscaling: Upscaling,
    test: dict[str, str] | None = None,
    test_lr: dict[str, str] | None = None,
    low_rounding: LowRounding = "each_pass",
    max_pixels: int = MAX_PIXELS,
) -> dict[str, Evaluation]:
    """The evaluation sets by name. Raises DataError as ``load`` does."""
    if not test:
        raise ValueError("data.test=null has to be set: folders by the name of the set, 'data.test={set5: DIR}'.")
    unknown = set(test_lr or {}) - set(test)
    if unknown:
        raise ValueError(f"data.test_lr names {', '.join(sorted(unknown))}, which data.test has not: add it there.")
    found: dict[str, Evaluation] = {}
    for name, folder in test.items():
        low = (test_lr or {}).get(name)
        listed = _listed(Path(folder), None if low is None else Path(low), upscaling.scale)
        pairs = _pairs(listed, upscaling, low_rounding, f"data.test.{name}={folder}", max_pixels=max_pixels)
        found[name] = Pictures(list(pairs), upscaling)
    return found


Entry = tuple[Path, "Path | None"]  # a photograph, and the file of it at low resolution


def _with_low(folders: Folders, low: Folders | None) -> Iterator[tuple[Path, Path | None]]:
    highs = [folders] if isinstance(folders, str) else folders
    lows = [None] * len(highs) if low is None else [low] if isinstance(low, str) else low
    if len(lows) != len(highs):
        raise ValueError(f"data.train_lr names {len(lows)} folders and data.train {len(highs)}: name one for each.")
    return ((Path(high), None if one is None else Path(one)) for high, one in zip(highs, lows, strict=True))


def _listed(folder: Path, low: Path | None, scale: int) -> list[Entry]:
    """The photographs of a folder, each with its low-resolution file where there is a folder of them."""
    highs = list_folder(folder)
    if low is None:
        return few([(path, None) for path in highs])
    names = _by_name(folder, highs)
    lows = {
        name if name in names else name.removesuffix(f"x{scale}"): path
        for name, path in _by_name(low, list_folder(low)).items()
    }
    alone = sorted(set(names) ^ set(lows))
    if alone:
        raise DataError(
            f"{folder} and {low} do not pair: {some(alone)} {'is' if len(alone) == 1 else 'are'} in one of them only; "
            f"a picture of NAME.png is NAME.png or NAMEx{scale}.png."
        )
    return few([(path, lows[name]) for name, path in names.items()])


def _by_name(folder: Path, paths: list[Path]) -> dict[str, Path]:
    """Files by their names without endings; DataError where two have one name."""
    found: dict[str, Path] = {}
    for path in paths:
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise DataError(
                f"{found[name]} and {path} have one name, which pairs by name need to be unique: rename one."
            )
        found[name] = path
    return found


def _pairs(
    entries: Iterable[Entry],
    upscaling: Upscaling,
    low_rounding: LowRounding,
    what: str,
    patch: int = 0,
    *,
    max_pixels: int,
) -> Iterator[Pair]:
    """Read the pairs, one at a time; those that cannot be used are left out and named, and DataError if all are."""
    listed = list(entries)
    left_out: list[str] = []
    bar = tqdm(listed, desc=f"reading {what}", unit="image", leave=False, disable=not sys.stderr.isatty(), delay=2)
    for path, low_path in bar:
        try:
            high = read_rgb(path, max_pixels)
            low = None if low_path is None else read_rgb(low_path, max_pixels)
            if patch and min(cropped(high, upscaling.scale).shape[-2:]) < patch * upscaling.scale:
                raise ImageError(
                    path, f"is smaller than a patch of {patch * upscaling.scale} pixels (data.patch={patch})"
                )
        except ImageError as error:
            left_out.append(str(error))
            continue
        yield pair_of(str(path), high, upscaling, low, low_rounding)
    if len(left_out) == len(listed):
        raise DataError(f"Of the {len(listed)} pictures of {what} none can be used:{on_lines(left_out)}")
    if left_out:
        logger.warning("%d of %d pictures of %s are left out:%s", len(left_out), len(listed), what, on_lines(left_out))


def _once(entries: Iterable[Entry]) -> list[Entry]:
    """Each photograph once, though links of several folders lead to it: one held out must not train from another."""
    kept: dict[Path, Entry] = {}
    again = [entry[0] for entry in entries if kept.setdefault(entry[0].resolve(), entry) != entry]
    if again:
        logger.warning("Pictures that are in two folders of data.train count once: %s.", some(again))
    return list(kept.values())
