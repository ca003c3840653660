"""Networks of other packages from the command line: where they come from, their weights, and tasks of one's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import QUICK
from foreign_nets import small

from repq_cli.cli import main
from repq_cli.deploy.network import DeployedNet

Run = Callable[..., tuple[int, Path | None]]

# A plugin in the current folder: a network of two maps, a loss and a score.
PLUGIN = """
import torch
from torch import nn


class Brighter(nn.Module):
    def forward(self, x):
        return 2 * x if x.mean() < 0 else x


class Deciding(nn.Sequential):
    def __init__(self, in_channels, num_classes):
        super().__init__()
        self.stem, self.brighter, self.pool = nn.Conv2d(in_channels, 8, 3, 2), Brighter(), nn.AdaptiveAvgPool2d(1)
        self.flat, self.fc = nn.Flatten(), nn.Linear(8, num_classes)


class Pyramid(nn.Module):
    def __init__(self, in_channels):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_channels, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.SiLU())
        self.deep = nn.Sequential(nn.Conv2d(8, 10, 3, 2, 1, bias=False), nn.BatchNorm2d(10), nn.ReLU())
        self.head = nn.Conv2d(8, 10, 1)

    def forward(self, x):
        x = self.stem(x)
        return {"fine": self.head(x), "coarse": (self.deep(x),)}


def loss(outputs, targets):
    coarse, = outputs["coarse"]
    votes = outputs["fine"].mean((2, 3)) + coarse.mean((2, 3))
    return nn.functional.cross_entropy(votes, targets)


def score(outputs, targets):
    return (outputs["fine"].mean((2, 3)).argmax(1) == targets).float()


def broken(outputs, targets):
    return outputs["missing"]


def constant(outputs, targets):
    return torch.zeros(())
"""
SETTINGS = [text for text in QUICK if "model" not in text]
FEATURES = ["+model=module", "model.target=maps.Pyramid", "plugins=[maps]", "task=features"]


def test_a_loss_of_ones_own_trains_a_network_of_several_maps(
    run_repq: Run, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("maps.py").write_text(PLUGIN)
    line = [*FEATURES, *SETTINGS, "loss=maps.loss"]
    code, folder = run_repq("train", *line, "score=maps.score")
    assert code == 0 and folder is not None
    row = json.loads((folder / "summary.json").read_text())
    assert row["task"] == "features" and row["metric"]["name"] == "score" and row["metric"]["higher_is_better"]
    assert row["checks"]["freeze_max_abs"] == 0 and row["checks"]["freeze_feature_agreement"] == 100
    answer = DeployedNet.load(folder / "deploy")(torch.zeros(2, 1, 16, 16))
    assert answer["fine"].shape == (2, 10, 8, 8) and answer["coarse"][0].shape == (2, 10, 4, 4)
    for command in (
        ["eval", "engine=integer"],
        ["export"],
        ["eval", "engine=onnx"],
        ["eval", "data=digits", "data.size=16"],
    ):
        assert main([*command, f"run={folder}", "plugins=[maps]"]) == 0, command
    said = capsys.readouterr().out
    assert "end to end" in said and "score" in said
    assert main(["table", "outputs"]) == 0
    assert "digits, score on test" in (table := capsys.readouterr().out) and "Classification" not in table
    assert main(["info", *FEATURES, "loss=maps.loss", "data.size=16"]) == 0
    assert "gives 10x8x8, 10x4x4" in capsys.readouterr().out

    for keys, sentence in (
        ([], "loss=null is what task=features trains by"),
        (["loss=maps.broken"], "loss=maps.broken cannot be computed of two images, for which the network gives [2, 10"),
        (["loss=maps.constant"], "gives a number without a gradient"),
        (["loss=maps.loss", "score=maps.loss"], "gives a tensor [] for 2 images"),
        (["loss=elsewhere.loss"], "loss=elsewhere.loss is of no package in plugins"),
        (["loss=maps.loss", "task=classification"], "loss=maps.loss is for task=features"),
        (["loss=null", "task=classification"], "wants [2, 10]"),
    ):
        assert main(["train", *FEATURES, *SETTINGS, *keys]) == 2, keys
        assert sentence in capsys.readouterr().err
    deciding = ["+model=module", "model.target=maps.Deciding", "plugins=[maps]", "model.keep_float=[brighter]"]
    for command, keys in ("train", SETTINGS), ("info", []):  # info has the network without data
        assert main([command, *deciding, *keys]) == 2, command
        assert "brighter (Brighter) is kept in floating point" in capsys.readouterr().err
    assert len(list(in_folder.glob("outputs/train/*"))) == 1


def test_networks_come_from_other_packages_and_start_from_their_weights(
    run_repq: Run, in_folder: Path, subtests: pytest.Subtests, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine.py").write_text(Path(__file__).with_name("foreign_nets.py").read_text())
    published = small(3, 7)  # for colours and other classes
    torch.save({"state_dict": published.state_dict()}, "weights.pth")
    for source, arch in {"torchvision": "mnasnet0_5", "timm": "test_byobnet"}.items():
        with subtests.test(source):
            pytest.importorskip(source, reason="timm is an extra")
            assert main(["info", f"+model={source}", f"model.arch={arch}", "data.size=32"]) == 0
            assert f"{source}, rep own, mode repq_bn" in capsys.readouterr().out
    keys = ["+model=module", "model.target=mine.small", "plugins=[mine]", "fp.checkpoint=weights.pth"]
    assert main(["train", *keys, *SETTINGS]) == 3
    said = capsys.readouterr().err
    assert "has 7 classes; fp.head=new" in said and "reads three colours, which fp.input=sum" in said
    code, folder = run_repq("train", *keys, *SETTINGS, "fp.format=timm", "fp.head=new", "fp.input=sum")
    assert code == 0 and folder is not None
    stored = list(torch.load(folder / "checkpoints" / "fp.pt")["net"].values())
    for name, theirs in published.named_parameters():
        wanted = theirs.sum(1, keepdim=True) if name == "0.0.weight" else theirs
        found = any(wanted.shape == mine.shape and torch.allclose(wanted, mine) for mine in stored)
        assert found == (not name.startswith("3.2")), name
