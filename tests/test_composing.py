"""Configurations are composed once, and are what Hydra alone makes of the same overrides."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import DictConfig, OmegaConf, open_dict

from repq_cli.cli import composing, main
from repq_cli.cli.command_line import CommandLine
from repq_cli.cli.composing import Loader
from repq_cli.cli.sweep import plan_of

A0 = ["+model=repvgg_a0", "rep=repvgg", "quant=w4a4", "model.width=0.25", "hydra.run.dir=x"]


def without_places(tree: DictConfig) -> object:
    """What is composed, but for where it was found and by whom."""
    with open_dict(tree):
        del tree.hydra.runtime, tree.hydra.job
    return OmegaConf.to_container(tree)


def test_it_is_what_hydra_composes(in_folder: Path) -> None:
    """Read for the first time and again, merged for the first time and again, and after a reader has changed it."""
    with initialize_config_dir(str(Path(composing.__file__).parents[2] / "configs"), version_base="1.3"):
        expected = [without_places(compose("train", texts, return_hydra_config=True)) for texts in (A0, A0[:3])]
    for kept in (composing._files, composing._merged):
        kept.clear()
    for _ in range(2):
        loader = Loader("train")
        for overrides, wanted in zip((A0, A0[:3], A0), (*expected, expected[0]), strict=True):
            found = loader.compose("train", overrides)
            assert found.hydra.job.name == "train"
            assert without_places(found) == wanted
            found.seed, found.quant.weight_bits = 7, 2
    assert len(composing._merged) == 1  # values are set afterwards


def test_files_of_ones_own_are_read_again(in_folder: Path) -> None:
    for bits in (3, 5):
        (Path("mine & yours/quant")).mkdir(parents=True, exist_ok=True)
        Path("mine & yours/quant/own.yaml").write_text(f"weight_bits: {bits}\nact_bits: 4\n")
        loader = Loader("train", "mine & yours")
        assert "own" in loader.get_group_options("quant")
        assert loader.compose("train", ["+model=repvgg_a0", "quant=own"]).quant.weight_bits == bits


def test_nothing_is_composed_twice(in_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    composed: Counter[tuple[str, ...]] = Counter()
    impl = ConfigLoaderImpl._load_configuration_impl

    def counted(self: ConfigLoaderImpl, config_name: str, overrides: list[str], **others: object) -> DictConfig:
        composed[tuple(overrides)] += 1
        return impl(self, config_name, overrides, **others)

    monkeypatch.setattr(ConfigLoaderImpl, "_load_configuration_impl", counted)
    assert main(["info", "+model=repvgg_a0", "model.width=0.0625"]) == 0
    assert list(composed.values()) == [1]
    composed.clear()
    assert len(plan_of(CommandLine.parse(["-m", "+model=repvgg_a0", "quant=w8a8,w4a4", "seed=0,1"])).jobs) == 4
    assert set(composed.values()) == {1} and len(composed) == 4
