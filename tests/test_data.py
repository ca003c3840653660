"""Datasets: fixed disjoint splits, batches that only the seed decides, and clear words about broken folders."""

from __future__ import annotations

import gc
import pickle
import shutil
import struct
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.transforms import CenterCrop, Compose, RandomHorizontalFlip, RandomResizedCrop, Resize

from repq_cli.data import digits, image_folder, imagenet, torchvision_sets
from repq_cli.data.augment import Augmentation, flip, shift
from repq_cli.data.base import DataInfo, InMemory, Split, stratified_split
from repq_cli.data.image_files import TASK, Files
from repq_cli.data.mixing import mixing
from repq_cli.errors import ConfigError, DataError
from repq_cli.finished_run import fitting
from repq_cli.tasks.classification import Classification

INFO = DataInfo("test", (1, 4, 4), ("a", "b"), (0.5,), (0.25,), "none")


def split(count: int = 10, augment: Augmentation | None = None) -> Split:
    images = torch.arange(count * 16, dtype=torch.uint8).view(count, 1, 4, 4)
    return Split(InMemory(images), torch.arange(count) % 2, INFO, augment)


def test_digits_are_split_by_class_the_same_way_every_time() -> None:
    first, second = digits.load(), digits.load()
    sizes = [len(part) for part in (first.train, first.val, first.tests["test"])]
    assert sum(sizes) == 1797
    assert sizes[2] == 359
    for a, b in ((first.train, second.train), (first.val, second.val), (first.tests["test"], second.tests["test"])):
        assert torch.equal(a.images.images, b.images.images)
        counts = a.labels.bincount()
        assert counts.max() - counts.min() <= 0.1 * counts.max() + 1
    assert first.info.shape == (1, 32, 32)
    assert first.info.num_classes == 10


def test_digits_are_scikit_learns_read_without_importing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load_digits()
    monkeypatch.delitem(sys.modules, "sklearn")
    data = digits.load(size=8)
    assert "sklearn" not in sys.modules
    found = [
        (label, image.numpy().tobytes())
        for part in (data.train, data.val, data.tests["test"])
        for image, label in zip(part.images.images, part.labels.tolist(), strict=True)
    ]
    images = np.rint(expected.images / 16 * 255).astype(np.uint8)
    assert sorted(found) == sorted(
        (label, image.tobytes()) for image, label in zip(images, expected.target, strict=True)
    )
    assert data.info.classes == tuple(str(name) for name in expected.target_names)


def test_digit_splits_share_no_image() -> None:
    data = digits.load(size=8)
    seen = [
        {image.numpy().tobytes() for image in part.images.images} for part in (data.train, data.val, data.tests["test"])
    ]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]


def test_normalised_training_images_have_mean_0_and_deviation_1() -> None:
    x = torch.cat([x for x, _ in digits.load().train.batches(256)])
    assert x.mean().item() == pytest.approx(0, abs=1e-4)
    assert x.std().item() == pytest.approx(1, abs=1e-3)


def test_batches_depend_on_the_seed_alone_and_can_start_anywhere() -> None:
    part = split(augment=Augmentation(crop=1, mirror=True))
    whole = list(part.training_batches(3, seed=7))
    torch.rand(5)  # the global generator is not asked
    again = list(part.training_batches(3, seed=7, start=2))
    assert len(whole) == 3
    assert len(again) == 1
    for (x, y), (x2, y2) in zip(whole[2:], again, strict=True):
        assert torch.equal(x, x2)
        assert torch.equal(y, y2)
    other = list(part.training_batches(3, seed=8))
    assert any(not torch.equal(a, b) for (a, _), (b, _) in zip(whole, other, strict=True))


def test_evaluation_reads_every_image_once_in_order() -> None:
    batches = list(split(10).batches(4))
    assert [len(y) for _, y in batches] == [4, 4, 2]
    pixels = torch.cat([x for x, _ in batches]) * 0.25 + 0.5
    assert torch.allclose(pixels * 255, torch.arange(160).view(10, 1, 4, 4).float(), atol=1e-3)


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"batch_size=11 is larger than the training split of 10 images: use .*=10"):
        split(10).steps(11)


def test_shifts_are_drawn_per_image_and_bring_in_zeros() -> None:
    images = torch.full((64, 2, 5, 5), 9, dtype=torch.uint8)
    moved = shift(images, torch.Generator().manual_seed(0), 2)
    sums = moved.flatten(1).sum(1, dtype=torch.int64)
    assert len(sums.unique()) > 3
    assert set(moved.unique().tolist()) == {0, 9}
    one = torch.zeros(200, 1, 5, 5, dtype=torch.uint8)
    one[:, :, 2, 2] = 1
    places = shift(one, torch.Generator().manual_seed(0), 1).flatten(1).argmax(1).unique()
    assert places.tolist() == [6, 7, 8, 11, 12, 13, 16, 17, 18]
    assert torch.equal(shift(images, torch.Generator(), 0), images)


def test_flips_mirror_about_half_of_the_images() -> None:
    images = torch.arange(5, dtype=torch.uint8).expand(400, 1, 2, 5)
    mirrored = (flip(images, torch.Generator().manual_seed(0))[:, 0, 0, 0] == 4).sum().item()
    assert 150 < mirrored < 250


def test_augmentation_draws_and_moves_as_image_by_image() -> None:
    """Bits of batches are those of a loop over images: runs that were begun earlier go on with the same ones."""
    images = torch.randint(0, 256, (9, 3, 6, 5), dtype=torch.uint8)
    images = images.contiguous(memory_format=torch.channels_last)
    found = Augmentation(crop=2, mirror=True)(images, torch.Generator().manual_seed(4))
    generator = torch.Generator().manual_seed(4)
    top, left = torch.randint(0, 5, (2, 9), generator=generator)
    mirrored = torch.rand(9, generator=generator) < 0.5
    for index, image in enumerate(images.numpy()):
        padded = np.pad(image, ((0, 0), (2, 2), (2, 2)))
        moved = padded[:, top[index] : top[index] + 6, left[index] : left[index] + 5]
        np.testing.assert_array_equal(found[index], moved[..., ::-1] if mirrored[index] else moved)


def test_mixed_batches_are_numpys_and_depend_on_the_seed_alone(subtests: pytest.Subtests) -> None:
    """RandAugment before, mixup or CutMix after; torch's own draws elsewhere go on as they were."""
    for mixup, cutmix in ((0.4, 0.0), (0.0, 1.0), (0.4, 1.0)):
        with subtests.test(mixup=mixup, cutmix=cutmix):
            colours = torch.randint(0, 255, (24, 3, 9, 8), dtype=torch.uint8)
            made = Augmentation(1, True, randaugment=9), mixing(5, mixup, cutmix)
            mixed = Split(InMemory(colours), torch.arange(24) % 5, INFO, *made)
            plain = Split(InMemory(colours), torch.arange(24) % 5, INFO, Augmentation(1, True, randaugment=9))
            before = torch.get_rng_state()
            batches = list(mixed.training_batches(8, 3))
            assert torch.equal(torch.get_rng_state(), before)
            for a, b in zip(batches[1:], mixed.training_batches(8, 3, start=1), strict=True):
                assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
            kinds = set()
            for (x, probabilities), (own, labels) in zip(batches, plain.training_batches(8, 3), strict=True):
                other, one_hot = own.roll(1, 0).numpy(), np.eye(5)[labels.numpy()]
                others = np.roll(one_hot, 1, 0)
                share = (probabilities.numpy() - others)[one_hot != others] / (one_hot - others)[one_hot != others]
                np.testing.assert_allclose(share, share[0], rtol=1e-5, atol=1e-6)
                from_other = np.isclose(x.numpy(), other) & ~np.isclose(other, own.numpy())
                smooth = share[0] * own.numpy() + (1 - share[0]) * other
                is_smooth = np.allclose(x.numpy(), smooth, atol=1e-5)
                kinds.add("mixup" if is_smooth else "cutmix")
                assert is_smooth or np.allclose(np.where(from_other, other, own.numpy()), x.numpy(), atol=1e-5)
                assert Classification().scores(probabilities, probabilities).eq(100).all()
            assert kinds <= {name for name, alpha in (("mixup", mixup), ("cutmix", cutmix)) if alpha}


def test_stratified_split_holds_out_of_every_class() -> None:
    labels = torch.tensor([0] * 100 + [1] * 10 + [2] * 3)
    kept, held = stratified_split(labels, 0.1)
    assert labels[held].bincount().tolist() == [10, 1, 1]
    assert torch.equal(torch.cat([kept, held]).sort().values, torch.arange(113))


def write_folder(root: Path, parts: tuple[str, ...] = ("train", "test"), size: tuple[int, int] = (10, 8)) -> Path:
    rng = np.random.default_rng(0)
    for part in parts:
        for name in ("cat", "dog"):
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(6):
                Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return root


def test_image_folder_reads_its_splits(tmp_path: Path) -> None:
    data = image_folder.load(str(write_folder(tmp_path, ("train", "val", "test"))))
    assert data.info.shape == (3, 10, 8)
    assert data.info.classes == ("cat", "dog")
    assert [len(part) for part in (data.train, data.val, data.tests["test"])] == [12, 12, 12]
    expected = np.array(Image.open(tmp_path / "val/dog/2.png"))
    x, y = next(iter(data.val.batches(12)))
    mean, std = (np.array(value) for value in (data.info.mean, data.info.std))
    np.testing.assert_allclose((x[8].permute(1, 2, 0).numpy() * std + mean) * 255, expected, atol=1e-3)
    assert y.tolist() == [0] * 6 + [1] * 6


def test_image_folder_holds_validation_out_where_there_is_only_one_more_split(tmp_path: Path) -> None:
    data = image_folder.load(str(write_folder(tmp_path, ("train", "val"))), val_fraction=0.34)
    assert [len(part) for part in (data.train, data.val, data.tests["test"])] == [8, 4, 12]


@pytest.mark.parametrize("cache_mib", [0, 1])
def test_statistics_are_those_of_the_images_trained_on(cache_mib: int, tmp_path: Path) -> None:
    """Neither of those held out for validation nor of those to test with."""
    data = image_folder.load(str(write_folder(tmp_path)), val_fraction=0.5, cache_mib=cache_mib, workers=0)
    (batch,) = data.train.images.read([torch.arange(len(data.train))])  # type: ignore[attr-defined]
    assert len(batch) == 6
    std, mean = torch.std_mean(batch.double() / 255, dim=(0, 2, 3))
    assert data.info.mean == pytest.approx(mean.tolist(), abs=1e-6)  # type: ignore[attr-defined]
    assert data.info.std == pytest.approx(std.tolist(), abs=1e-6)  # type: ignore[attr-defined]


def test_a_stored_network_keeps_the_statistics_it_was_trained_with(tmp_path: Path) -> None:
    other = image_folder.load(str(write_folder(tmp_path))).tests["test"]
    trained = {"input_shape": [3, 10, 8], "classes": ["cat", "dog"], "mean": [0.1, 0.2, 0.3], "std": [0.5, 1.0, 2.0]}
    (x, _), *_ = fitting("test", other, SimpleNamespace(graph=trained)).batches(12)  # type: ignore[arg-type]
    mean, std = (torch.tensor(trained[name]).view(3, 1, 1) for name in ("mean", "std"))
    torch.testing.assert_close((x * std + mean) * 255, other.images.images.float())  # type: ignore[attr-defined]


@pytest.mark.parametrize("workers", [0, 3])  # more than some machines have processors, which is no reason to warn
def test_images_too_large_for_memory_are_decoded_as_needed(tmp_path: Path, workers: int) -> None:
    root = str(write_folder(tmp_path, ("train", "val", "test")))
    cached = image_folder.load(root, size=9, grey=True)
    lazy = image_folder.load(root, size=9, grey=True, cache_mib=0, workers=workers)
    assert cached.info == lazy.info
    assert cached.info.shape == (1, 9, 9)
    for a, b in zip(cached.train.training_batches(4, 1), lazy.train.training_batches(4, 1), strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])


def test_images_in_memory_are_those_of_the_files_beyond_one_task(tmp_path: Path) -> None:
    """Whether a bar is shown, as in a terminal, or not."""
    paths = [tmp_path / f"{index}.png" for index in range(TASK + 2)]
    for index, path in enumerate(paths):
        Image.new("RGB", (2, 2), (index, 0, 255 - index)).save(path)
    images = Files(paths, image_folder.Decoder((2, 2), grey=False), workers=0).all()
    assert images[:, 0, 0, 0].tolist() == list(range(TASK + 2))


def test_broken_image_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no folder 'train'"):
        image_folder.load(str(tmp_path / "nowhere"))
    root = write_folder(tmp_path / "a", ("train",))
    with pytest.raises(DataError, match="neither 'val' nor 'test'"):
        image_folder.load(str(root))
    root = write_folder(tmp_path / "b")
    (root / "train/cat/3.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"3\.png cannot be decoded"):
        image_folder.load(str(root))
    root = write_folder(tmp_path / "c")
    content = (root / "train/cat/3.png").read_bytes()
    (root / "train/cat/3.png").write_bytes(content[:100])
    with pytest.raises(DataError, match=r"3\.png cannot be decoded"):
        image_folder.load(str(root))
    root = write_folder(tmp_path / "d")
    for path in (root / "test/dog").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"test/dog has no images"):
        image_folder.load(str(root))
    root = write_folder(tmp_path / "e")
    Image.new("RGB", (5, 5)).save(root / "train/dog/9.png")
    with pytest.raises(DataError, match=r"9\.png is 5x5, the first one 8x10: set data\.size"):
        image_folder.load(str(root))
    root = write_folder(tmp_path / "f")
    (root / "test/bird").mkdir()
    with pytest.raises(DataError, match="has the class 'bird'"):
        image_folder.load(str(root))
    root = tmp_path / "g"
    (root / "train/only").mkdir(parents=True)
    (root / "test").mkdir()
    with pytest.raises(DataError, match="at least two class folders"):
        image_folder.load(str(root))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_found_by_a_worker_is_one_sentence(tmp_path: Path, workers: int) -> None:
    root = write_folder(tmp_path)
    (root / "train/cat/3.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"^The image \S+3\.png cannot be decoded: [^\n]+; remove or replace it\.$"):
        image_folder.load(str(root), size=8, cache_mib=0, workers=workers)


@pytest.mark.parametrize("dataset", ["MNIST", "FashionMNIST", "CIFAR10"])
def test_missing_torchvision_data_is_not_downloaded(dataset: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"holds no intact {dataset}: .*data\.download=true"):
        torchvision_sets.load(dataset, root=str(tmp_path))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_mnist_is_read_and_padded(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, count in (("train", 40), ("t10k", 20)):
        pixels = rng.integers(0, 255, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, count, 28, 28) + pixels.tobytes())
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels.tobytes())
    data = torchvision_sets.load("MNIST", root=str(tmp_path), size=32)
    assert data.info.shape == (1, 32, 32)
    assert [len(part) for part in (data.train, data.val, data.tests["test"])] == [30, 10, 20]
    assert data.tests["test"].images.images[0, 0, :2].sum() == 0
    with pytest.raises(ValueError, match=r"data\.size=20 is smaller"):
        torchvision_sets.load("MNIST", root=str(tmp_path), size=20)


# CIFAR-100, SVHN and ImageNet


def test_cifar100_has_a_hundred_classes(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, count in (("train", 400), ("test", 100)):
        labels = [index % 100 for index in range(count)]
        pixels = rng.integers(0, 255, (count, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "fine_labels": labels}))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"class {index}" for index in range(100)]}))
    with mock.patch("torchvision.datasets.cifar.check_integrity", return_value=True):
        data = torchvision_sets.load("CIFAR100", str(tmp_path))
    assert data.info.num_classes == 100
    assert data.info.shape == (3, 32, 32)
    assert (len(data.train), len(data.val), len(data.tests["test"])) == (300, 100, 100)
    assert torchvision_sets.describe("CIFAR100") == ("CIFAR100", (3, 32, 32), 100)


def test_svhn_is_read_with_its_digits_as_classes(tmp_path: Path) -> None:
    from scipy.io import savemat

    rng = np.random.default_rng(0)
    for name in ("train", "test"):
        labels = np.arange(40).reshape(-1, 1) % 10 + 1  # the files call the zero ten
        images = rng.integers(0, 255, (32, 32, 3, 40), dtype=np.uint8)
        savemat(tmp_path / f"{name}_32x32.mat", {"X": images, "y": labels})
    with mock.patch("torchvision.datasets.svhn.check_integrity", return_value=True):
        data = torchvision_sets.load("SVHN", str(tmp_path))
    assert data.info.classes == tuple("0123456789")
    assert data.tests["test"].labels[:11].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert data.train.images.images.shape[1:] == (3, 32, 32)


@pytest.mark.parametrize("name", ["CIFAR100", "SVHN"])
def test_absent_torchvision_sets_say_what_to_do(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"holds no intact {name}: .* data\.download=true"):
        torchvision_sets.load(name, str(tmp_path))


def small_imagenet(root: Path, count: int = 12) -> Path:
    rng = np.random.default_rng(0)
    for part, number in (("train", count), ("val", 3)):
        for label, name in enumerate(("n01440764", "n01443537")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(number):
                height, width = 40 + 3 * index, 60 - 2 * index
                pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8) // 2 + 100 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index:02d}.png")
    return root


def test_imagenet_decodes_with_the_papers_augmentation(tmp_path: Path) -> None:
    data = imagenet.load(str(small_imagenet(tmp_path)), size=16, resize=20, val_fraction=0.25, workers=0)
    assert (len(data.train), len(data.val), len(data.tests["test"])) == (18, 6, 6)
    assert data.info.shape == (3, 16, 16)
    (x, y), *_ = data.tests["test"].batches(6)
    image = Image.open(tmp_path / "val" / "n01440764" / "00.png")
    expected = CenterCrop(16)(Resize(20)(image))
    wanted = torch.from_numpy(np.array(expected)).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(value).view(-1, 1, 1) for value in (imagenet.MEAN, imagenet.STD))
    torch.testing.assert_close(x[0], (wanted - mean) / std)
    assert y.tolist() == [0, 0, 0, 1, 1, 1]
    assert imagenet.describe(size=160, root="x") == ("imagenet", (3, 160, 160), 1000)


def test_random_crops_depend_on_seed_and_image_alone(tmp_path: Path) -> None:
    """Not on worker processes, nor on whether the batches before were read, nor on the global generator."""
    root = str(small_imagenet(tmp_path))
    loaded = {workers: imagenet.load(root, size=16, resize=20, workers=workers) for workers in (0, 2)}
    torch.manual_seed(3)
    alone = list(loaded[0].train.training_batches(4, seed=7))
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(1), drawn), "decoding drew from the global generator"
    by_workers = list(loaded[2].train.training_batches(4, seed=7))
    resumed = list(loaded[2].train.training_batches(4, seed=7, start=3))
    for (a, _), (b, _) in zip(alone, by_workers, strict=True):
        assert torch.equal(a, b)
    for (a, _), (b, _) in zip(alone[3:], resumed, strict=True):
        assert torch.equal(a, b)
    other = list(loaded[0].train.training_batches(4, seed=8))
    assert not torch.equal(torch.cat([x for x, _ in other]), torch.cat([x for x, _ in alone]))


def test_random_crops_are_torchvisions(tmp_path: Path) -> None:
    """The part is drawn by torchvision from a shape alone, and cut out of an array: the bits are those of its own."""
    transform = Compose([RandomResizedCrop(16, (0.08, 1.0)), RandomHorizontalFlip()])
    crop = imagenet.RandomCrop(16, (0.08, 1.0))
    for seed, path in enumerate(sorted((small_imagenet(tmp_path) / "train").rglob("*.png"))):
        torch.manual_seed(seed)
        expected = np.array(transform(Image.open(path)))
        np.testing.assert_array_equal(crop(path, seed).permute(1, 2, 0), expected)


def test_imagenet_folders_that_are_missing_or_broken_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.root=.* has no folder 'train'"):
        imagenet.load(str(tmp_path))
    root = small_imagenet(tmp_path)
    shutil.rmtree(root / "val")
    with pytest.raises(DataError, match="has no folder 'val'"):
        imagenet.load(str(root))
    (root / "val").mkdir()
    with pytest.raises(DataError, match="val"):
        imagenet.load(str(root))


def test_a_broken_imagenet_image_is_named_from_a_worker(tmp_path: Path) -> None:
    root = small_imagenet(tmp_path)
    (root / "val" / "n01443537" / "01.png").write_bytes(b"no image")
    data = imagenet.load(str(root), size=16, resize=20, workers=1)
    with pytest.raises(DataError, match=r"n01443537/01\.png cannot be decoded"):
        list(data.tests["test"].batches(100))  # one task, behind which the worker has nothing left to do
    gc.collect()  # ends it here, and not in another test


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [({"resize": 100}, r"data\.resize=100 is smaller"), ({"scale": (1.0, 0.5)}, r"data\.scale=\[1\.0, 0\.5\] takes")],
)
def test_impossible_crops_are_refused(arguments: dict[str, object], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        imagenet.load(str(small_imagenet(tmp_path)), **arguments)
