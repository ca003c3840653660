"""What memory does not hold is refused before any of it is taken, and before there is a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.modules import module as registered

import repq_cli as repq
from repq_cli import memory
from repq_cli.cli import main


def test_networks_and_images_that_memory_does_not_hold(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    net = "+model=repvgg_a0"
    for arguments, said in (
        (["info", net, "model.width=1000"], "model=repvgg_a0 with these keys does not fit into memory"),
        (["train", net, "model.width=1000"], "choose a smaller one, as by model.width"),
        (["train", net, "data.size=100000"], "data.size=100000 takes 161,730.0 GB of memory"),
        (["train", net, "runtime.devices=1024", "quant=w4a4"], "runtime.devices=1024, a process each, takes 214.7 GB"),
        (
            ["bench", "bench=train", "batch=1000000", "compiled=false"],
            "A training step of batch=1000000 images 3x32x32 takes",
        ),
    ):
        assert main(arguments) == 2
        assert said in capsys.readouterr().err
    monkeypatch.setattr(memory, "available", lambda: 100_000_000)  # which holds the network, and a small batch's maps
    assert main(["train", net, "data.batch_size=512"]) == 2
    assert "A training step of data.batch_size=512 images 1x32x32 takes" in capsys.readouterr().err
    assert not list(in_folder.iterdir())


def test_what_is_found_at_once_is_never_less_than_what_a_step_keeps(subtests: pytest.Subtests) -> None:
    """On maps that strides, borders and pixel shuffles make smaller and larger."""
    cases = [("resnet18_cifar", rep) for rep in ("none", "acnet", "dbb", "orepa", "mobileone")]
    for name, rep in [*cases, ("ecbsr_m4c8", "ecb"), ("sesr_m5", "sesr")]:
        with subtests.test(model=name, rep=rep), torch.device("meta"):
            enlarges = rep in ("ecb", "sesr")
            how = {"scale": 4} if enlarges else {"num_classes": 10, "blocks": [1, 1, 1, 1]}
            net = getattr(repq.models, name)(**how, rep=rep)
            shape = (1 if enlarges else 3, 8, 9)
            assert memory.kept_by_a_step(net, shape) <= memory.surely_below(net, shape) < float("inf")
    with torch.device("meta"):
        assert memory.surely_below(torch.nn.ConvTranspose2d(3, 4, 2, 2), (3, 8, 9)) == float("inf")


def test_weights_are_counted_as_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """On ``meta`` and elsewhere, several times, with biases; what the system refuses at once is the same sentence."""
    needed = memory.COPIES * 4 * (3 * 8 + 8 + 8 * 2)
    hooks = len(registered._global_parameter_registration_hooks)
    for device in ("cpu", "meta"):
        for free in (needed, needed - 1, None):
            monkeypatch.setattr(memory, "available", lambda free=free: free)
            fits = free != needed - 1
            try:
                with torch.device(device), memory.holding("a"):
                    torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Linear(8, 2, bias=False))
            except memory.ConfigError:
                assert not fits
            else:
                assert fits
    with pytest.raises(memory.ConfigError, match="does not fit into memory"), memory.holding("a"):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 83 GB")
    with pytest.raises(RuntimeError, match="another matter"), memory.holding("a"):
        raise RuntimeError("another matter")
    assert len(registered._global_parameter_registration_hooks) == hooks


def test_a_container_may_have_less_than_its_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LIMITS", [(str(tmp_path / "max"), str(tmp_path / "current"))])
    alone = memory.available()
    assert alone is not None and alone > 0
    (tmp_path / "current").write_text("300\n")
    for limit, free in (("max\n", None), ("1000\n", 700), ("200\n", 0)):
        (tmp_path / "max").write_text(limit)
        assert (memory.available() == free) == (free is not None)
