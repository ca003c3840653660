"""Pairs of pictures: crops, orientations, folders, and everything that can be wrong with them."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from repq_cli.data import photos, sr_folder
from repq_cli.data.pictures import Pair, Patches, Pictures, Upscaling, in_colour, pair_of
from repq_cli.errors import ConfigError, DataError
from repq_cli.images.files import to_image
from repq_cli.images.resize import LowRounding, shrink

LUMA2 = Upscaling(2, "luma")


def picture(rows: int = 64, columns: int = 60) -> Tensor:
    return torch.randint(0, 256, (3, rows, columns), dtype=torch.uint8)


def numbered(rows: int, columns: int, scale: int = 2) -> Pair:
    """A pair in which every low-resolution pixel has a value of its own, and its block in the original the same."""
    low = torch.arange(rows * columns, dtype=torch.uint8).view(1, rows, columns)
    return Pair("numbered", low, low.repeat_interleave(scale, 1).repeat_interleave(scale, 2))


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_crops_are_aligned_in_every_orientation_and_reach_every_pixel(scale: int) -> None:
    pair = numbered(13, 17, scale)
    patches = Patches([pair, pair], Upscaling(scale, "rgb"), 8, 256)
    (low, high), *_ = patches.training_batches(256, seed=1)
    assert low.dtype == torch.float32 and low.shape == (256, 1, 8, 8)
    assert torch.equal(high, low.repeat_interleave(scale, 2).repeat_interleave(scale, 3))
    assert low.unique().tolist() == list(range(13 * 17))
    along, across = low[:, 0, 0, 1] - low[:, 0, 0, 0], low[:, 0, 1, 0] - low[:, 0, 0, 0]
    orientations = {(int(a), int(b)) for a, b in zip(along, across, strict=True)}
    assert orientations == {(a, b) for x in (1, -1) for y in (17, -17) for a, b in ((x, y), (y, x))}


def test_every_position_is_as_likely_as_any_other() -> None:
    """A picture with many positions is drawn from more often than a small one."""
    small, large = (
        Pair("", torch.full((1, n, n), v, dtype=torch.uint8), torch.full((1, 2 * n, 2 * n), v, dtype=torch.uint8))
        for n, v in ((8, 0), (16, 1))
    )
    patches = Patches([small, large], Upscaling(2, "rgb"), 8, 2000)
    (low, _), *_ = patches.training_batches(2000, seed=0)
    assert low[:, 0, 0, 0].mean().item() == pytest.approx(81 / 82, abs=0.01)


def test_batches_depend_on_the_seed_and_on_nothing_before_them() -> None:
    patches = Patches([pair_of("", picture(), LUMA2)], LUMA2, 16, 40)
    whole = list(patches.training_batches(8, seed=3))
    assert len(whole) == patches.steps(8) == 5
    torch.testing.assert_close(list(patches.training_batches(8, seed=3, start=2)), whole[2:])
    assert not torch.equal(whole[0][0], next(patches.training_batches(8, seed=4))[0])
    assert not torch.equal(whole[0][0], whole[1][0])
    with pytest.raises(ConfigError, match=r"data\.batch_size=41 is more than the data\.patches=40"):
        patches.steps(41)


def test_whole_pictures_come_one_by_one_in_the_networks_colours() -> None:
    pairs = [pair_of("a", picture(33, 41), LUMA2), pair_of("b", picture(50, 36), LUMA2)]
    assert pairs[0].high.shape == (3, 32, 40) and pairs[0].low.shape == (3, 16, 20)
    shapes = [(tuple(low.shape), tuple(high.shape)) for low, high in Pictures(pairs, LUMA2).batches(256)]
    assert shapes == [((1, 1, 16, 20), (1, 1, 32, 40)), ((1, 1, 25, 18), (1, 1, 50, 36))]
    low, _ = next(Pictures(pairs, LUMA2).batches(1))
    assert torch.equal(low, low.round()) and low.min() >= 16 and low.max() <= 235
    rgb = Upscaling(2, "rgb")
    assert torch.equal(next(Pictures(pairs, rgb).batches(1))[0][0], pairs[0].low.float())
    assert in_colour(pairs[0].low, "rgb") is pairs[0].low


def test_embedded_photographs_keep_training_and_test_apart() -> None:
    assert not set(photos.TRAIN) & (set(photos.VAL) | set(photos.TEST))
    assert not any("right" in name for name in (*photos.TRAIN, *photos.VAL, *photos.TEST))
    data = photos.load(LUMA2, patch=48, patches=32)
    assert (len(data.train), len(data.val), {name: len(split) for name, split in data.tests.items()}) == (
        5,
        1,
        {"astronaut": 1},
    )
    low, high = next(data.train.training_batches(32, seed=0))
    assert low.shape == (32, 1, 48, 48) and high.shape == (32, 1, 96, 96)
    assert data.info.shape == photos.describe(LUMA2).shape == (1, 540, 960)


def test_a_missing_photograph_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "TEST", {"nobody.png": photos.SKIMAGE})
    with pytest.raises(DataError, match=r"nobody\.png is missing from the installed skimage"):
        photos.evaluation_sets(LUMA2)


def write(folder: Path, **pictures: Tensor) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for name, pixels in pictures.items():
        to_image(pixels).save(folder / f"{name}.png")
    return str(folder)


def test_folders_with_pictures_made_small_here(tmp_path: Path) -> None:
    train = [write(tmp_path / "a", **{f"a{n}": picture() for n in range(4)}), write(tmp_path / "b", b=picture())]
    test = {"one": write(tmp_path / "one", x=picture(35, 37)), "two": write(tmp_path / "two", y=picture(), z=picture())}
    data = sr_folder.load(LUMA2, train, val_images=2, test=test, patch=16, patches=8)
    assert (len(data.train), len(data.val)) == (3, 2)
    assert {name: len(split) for name, split in data.tests.items()} == {"one": 1, "two": 2}
    again = sr_folder.load(LUMA2, train, val=train[1], test=test, patch=16, patches=8)
    assert (len(again.train), len(again.val)) == (5, 1)


def test_low_resolution_made_here_is_rounded_as_asked_for(tmp_path: Path) -> None:
    high = picture()
    folder, upscaling = write(tmp_path / "high", x=high), LUMA2
    kinds: tuple[LowRounding, ...] = ("each_pass", "once")
    lows = {kind: shrink(high, 2, kind) for kind in kinds}
    assert not torch.equal(lows["each_pass"], lows["once"])
    for kind, low in lows.items():
        data = sr_folder.load(upscaling, folder, val=folder, test={"s": folder}, patch=16, low_rounding=kind)
        np.testing.assert_array_equal(data.train.pairs[0][0], in_colour(low, "luma").numpy())  # type: ignore[attr-defined]
        alone = sr_folder.evaluation_sets(upscaling, {"s": folder}, low_rounding=kind)
        for split in (data.val, data.tests["s"], alone["s"]):
            assert torch.equal(split.pairs[0].low, low)  # type: ignore[attr-defined]
    assert torch.equal(sr_folder.evaluation_sets(upscaling, {"s": folder})["s"].pairs[0].low, lows["each_pass"])  # type: ignore[attr-defined]
    first, second = (photos.evaluation_sets(upscaling, kind)["astronaut"].pairs[0].low for kind in kinds)  # type: ignore[attr-defined]
    assert not torch.equal(first, second)


def test_folders_of_pictures_at_low_resolution(tmp_path: Path) -> None:
    highs = {f"p{n}": picture(64, 48) for n in range(3)}
    lows = {name: 255 - shrink(high, 2) for name, high in highs.items()}  # not what would be made
    high = write(tmp_path / "high", **highs)
    low = write(tmp_path / "low", **{f"{name}x2": pixels for name, pixels in lows.items()})
    sets = sr_folder.evaluation_sets(LUMA2, {"set": high}, {"set": low})
    assert [pair.low.tolist() for pair in sets["set"].pairs] == [lows[name].tolist() for name in highs]  # type: ignore[attr-defined]
    data = sr_folder.load(LUMA2, high, low, val=high, val_lr=low, test={"set": high}, patch=16, patches=8)
    assert len(data.train) == 3


def test_folders_that_do_not_pair_and_scales_that_do_not_fit(tmp_path: Path) -> None:
    high = write(tmp_path / "high", a=picture(64, 48), b=picture(64, 48))
    with pytest.raises(DataError, match="do not pair: b is in one of them only"):
        sr_folder.evaluation_sets(LUMA2, {"s": high}, {"s": write(tmp_path / "one", a=picture(32, 24))})
    same = write(tmp_path / "same", ax2=picture(32, 24), b=picture(32, 24))
    assert len(sr_folder.evaluation_sets(LUMA2, {"s": high}, {"s": same})["s"]) == 2
    to_image(picture(32, 24)).save(tmp_path / "same/b.jpg")
    with pytest.raises(DataError, match="have one name"):
        sr_folder.evaluation_sets(LUMA2, {"s": high}, {"s": same})
    third = write(tmp_path / "third", a=picture(21, 16), b=picture(21, 16))
    with pytest.raises(
        DataError, match=r"a\.png is 48x64 and its low-resolution picture 16x21, which is not 1/2 of it"
    ):
        sr_folder.evaluation_sets(LUMA2, {"s": high}, {"s": third})
    with pytest.raises(ValueError, match="names t, which"):
        sr_folder.evaluation_sets(LUMA2, {"s": high}, {"t": third})
    with pytest.raises(ValueError, match=r"data\.train_lr names 1 folders and data\.train 2"):
        sr_folder.load(LUMA2, [high, high], third, test={"s": high})


def test_broken_and_small_pictures_are_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write(tmp_path / "train", good=picture(), fine=picture(), small=picture(30, 60))
    whole = (tmp_path / "train/good.png").read_bytes()
    (tmp_path / "train/cut.png").write_bytes(whole[: len(whole) // 2])
    with caplog.at_level(logging.WARNING, "repq"):
        data = sr_folder.load(
            LUMA2, folder, val=write(tmp_path / "v", v=picture()), test={"s": str(tmp_path / "v")}, patch=16, patches=8
        )
    assert len(data.train) == 2
    (message,) = [record.getMessage() for record in caplog.records]
    head, *reasons = message.splitlines()
    assert head == f"2 of 4 pictures of data.train={folder} are left out:"
    assert [reason.split(folder)[1] for reason in reasons] == [
        "/cut.png cannot be decoded (image file is truncated): remove or replace it.",
        "/small.png is smaller than a patch of 32 pixels (data.patch=16).",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "data.train=null has to be set"),
        ({"train": "nothing"}, "data.test=null has to be set"),
        (
            {"train": "small", "test": {"s": "small"}},
            "Of the 3 pictures of data.train=small none can be used:\n  The image small/s0.png is smaller than a patch",
        ),
        ({"train": "nothing", "test": {"s": "small"}}, "nothing is no folder"),
        ({"train": "empty", "test": {"s": "small"}}, "empty holds no images"),
        (
            {"train": "broken", "test": {"s": "small"}},
            "none can be used:\n  The image broken/a.png cannot be decoded: it is of no format",
        ),
        ({"train": "one", "test": {"s": "one"}}, "holds too few photographs to hold data.val_images=5 out"),
        ({"train": "small", "test": {"s": "dots"}, "patch": 8}, "pictures need at least 15 pixels a side at scale 2"),
    ],
)
def test_folders_that_cannot_be_used(arguments: dict[str, object], message: str, in_folder: Path) -> None:
    write(Path("small"), **{f"s{n}": picture(40, 40) for n in range(4)})
    write(Path("one"), x=picture())
    write(Path("dots"), x=picture(12, 40))
    Path("empty").mkdir()
    write(Path("broken"), a=picture(), b=picture(), c=picture())
    for name in "abc":
        Path(f"broken/{name}.png").write_bytes(b"no image")
    held = {} if arguments.get("train") == "one" else {"val_images": 1}
    with pytest.raises((DataError, ValueError), match=message.replace(".", r"\.")):
        sr_folder.load(LUMA2, **held, **arguments)  # type: ignore[arg-type]
