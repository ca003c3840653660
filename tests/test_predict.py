"""Networks asked about image files: their classes as a file, and class folders measured without training images."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from repq_cli.cli import main
from repq_cli.finished_run import FinishedRun
from repq_cli.images.colour import in_channels
from repq_cli.images.files import pixels_of, write_png

CLASSES = 10


@pytest.fixture
def pictures(in_folder: Path) -> Path:
    """Four test digits of each class as ``digits/CLASS/NUMBER.png``, some of them in colours."""
    from repq_cli.data.digits import load

    split = load().tests["test"]
    for label in range(CLASSES):
        for number, index in enumerate((split.labels == label).nonzero().flatten()[:4].tolist()):  # type: ignore[attr-defined]
            path = Path("digits", str(label), f"{number}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            image = next(iter(split.images.read([torch.tensor([index])])))[0]  # type: ignore[attr-defined]
            write_png(path, in_channels(image, 3) if number % 2 else image)
    return Path("digits")


def test_images_get_their_classes(finished: Path, pictures: Path) -> None:
    run = f"run={finished}"
    assert main(["predict", run, f"in={pictures}", "out=a/found.json"]) == 0
    found = {each["file"]: each for each in json.loads(Path("a/found.json").read_text())}
    assert len(found) == 40
    net = FinishedRun(finished).deployed.eval()
    mean, std = (torch.tensor(net.graph[key]).view(-1, 1, 1) for key in ("mean", "std"))
    for path in pictures.rglob("*.png"):
        pixels = pixels_of(Image.open(path).convert("L")).float() / 255
        expected = net(((pixels - mean) / std)[None]).double().softmax(1)[0]
        each = found[str(path)]
        assert [guess["class"] for guess in each["top"]] == [str(index) for index in expected.topk(5).indices.tolist()]
        assert each["class"] == each["top"][0]["class"]
        assert each["probability"] == pytest.approx(expected.max().item(), abs=1e-6)

    Path("=1+1.png").write_bytes((pictures / "3/0.png").read_bytes())
    Path("broken.png").write_bytes(b"no image")
    Image.new("RGB", (50, 40)).save("large.png")
    assert main(["predict", run, "in=[*.png, digits/3]", "out=found.csv", "engine=integer"]) == 3
    with Path("found.csv").open(newline="") as file:
        lines = {line["file"]: line for line in csv.DictReader(file)}
    assert set(lines) == {"'=1+1.png", "broken.png", "large.png", *(f"digits/3/{number}.png" for number in range(4))}
    assert "broken.png cannot be decoded" in lines["broken.png"]["error"] and not lines["broken.png"]["class"]
    assert lines["'=1+1.png"]["class"] == lines["digits/3/0.png"]["class"] == found["digits/3/0.png"]["class"]
    assert lines["large.png"]["class_5"] and not lines["large.png"]["error"]


WRONG: list[tuple[list[str], int, str]] = [
    (["in=nothing", "out=a.csv"], 3, "in=nothing is neither an image nor a folder nor a pattern"),
    (["in=x/*.png", "out=a.csv"], 3, "in=x/*.png matches no image"),
    (["in=digits", "out=a.txt"], 2, "out=a.txt ends in neither .csv nor .json"),
    (["in=digits", "out=taken.csv"], 3, "taken.csv is there already"),
    (["in=digits", "out=a.csv", "engine=fp32"], 2, "did you mean 'fp'?"),
]


def test_what_cannot_be_predicted_is_said(
    finished: Path, in_folder: Path, capsys: pytest.CaptureFixture[str], subtests: pytest.Subtests
) -> None:
    Path("digits").mkdir()
    Path("taken.csv").write_text("")
    for arguments, code, said in WRONG:
        with subtests.test(said):
            assert main(["predict", f"run={finished}", *arguments]) == code
            assert said in " ".join(capsys.readouterr().err.split())


def test_folders_are_measured_without_training_images(
    finished: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Class folders alone, ``test/`` alone, and those of some classes: each in the network's own colours and size."""

    def measured(*arguments: str) -> float:
        assert main(["eval", f"run={finished}", "engine=deployed", "data=image_folder", *arguments]) == 0
        line = next(line for line in capsys.readouterr().out.splitlines() if "top1" in line)
        return float(line.split()[-1])

    alone = measured("data.root=digits")
    shutil.copytree("digits", "mine/test")
    assert measured("data.root=mine") == alone
    assert measured("data.root=mine", "data.grey=false", "data.cache_mib=0", "data.workers=0") == alone
    for label in range(2, CLASSES):
        shutil.rmtree(f"mine/test/{label}")
    main(["predict", f"run={finished}", "in=[mine]", "out=some.json"])
    found = json.loads(Path("some.json").read_text())
    right = sum(each["class"] == Path(each["file"]).parent.name for each in found)
    assert measured("data.root=mine") == pytest.approx(100 * right / 8, abs=0.01)

    Path("mine/test/other").mkdir()
    shutil.copy("digits/1/0.png", "mine/test/other/x.png")
    assert main(["eval", f"run={finished}", "data=image_folder", "data.root=mine"]) == 3
    Path("mine/test").rename("mine/train")
    assert main(["eval", f"run={finished}", "data=image_folder", "data.root=mine"]) == 3
    assert "name data.root=mine/train" in " ".join(capsys.readouterr().err.split())
