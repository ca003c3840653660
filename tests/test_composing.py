"""Configurations are composed once, and are what Hydra alone makes of the same overrides."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from repq_cli.cli import composing, main
from repq_cli.cli.command_line import CommandLine
from repq_cli.cli.composing import Loader
from repq_cli.cli.sweep_plan import plan_of

RUN = RunMode.RUN
A0 = ["+model=repvgg_a0", "rep=repvgg", "quant=w4a4", "model.width=0.25", "hydra.run.dir=x"]


def test_it_is_what_hydra_composes(in_folder: Path) -> None:
    """For the first time, with other values, from another folder, and after a reader has changed it."""
    for kept in (composing._files, composing._chosen):
        kept.clear()
    hydras = ConfigLoaderImpl(Loader("train").config_search_path)
    of_jobs = ["model.blocks=choice([1,1,1,1])", "mode=plain,merged", "hydra.mode=MULTIRUN", "hydra.sweep.dir=y"]
    cases = [(A0, RUN), (A0[:3], RUN), (A0, RUN), ([*A0, "hydra.job.env_copy=[HOME]", "+mode.other=[1]"], RUN)]
    for number, (overrides, mode) in enumerate([*cases, ([*A0, *of_jobs], RunMode.MULTIRUN)]):
        expected = OmegaConf.to_container(hydras.load_configuration("train", overrides, mode))
        found = Loader("train").load_configuration("train", overrides, mode)
        assert (OmegaConf.is_struct(found), found.seed) == (True, 0)
        assert OmegaConf.to_container(found) == expected
        found.seed, found.quant.weight_bits = 7, 2
        os.chdir(in_folder.parent if number else in_folder)
    assert len(composing._chosen) == 3  # values are set afterwards


def test_what_hydra_refuses_is_refused(in_folder: Path) -> None:
    for overrides in (["nothing.x=1"], ["quant=nothing"], ["seed=1,2"], ["quant.weight_bits.x=1"], ["data@x=digits"]):
        with pytest.raises((HydraException, OmegaConfBaseException)):
            Loader("train").compose("train", [*A0, *overrides])


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
    composing._chosen.clear()

    def counted(self: ConfigLoaderImpl, config_name: str, overrides: list[str], **others: object) -> DictConfig:
        composed[tuple(overrides)] += 1
        return impl(self, config_name, overrides, **others)

    monkeypatch.setattr(ConfigLoaderImpl, "_load_configuration_impl", counted)
    assert main(["info", "+model=repvgg_a0", "model.width=0.0625"]) == 0
    assert list(composed.values()) == [1]
    composed.clear()
    assert len(plan_of(CommandLine.parse(["-m", "+model=repvgg_a0", "quant=w8a8,w4a4", "seed=0,1"])).jobs) == 4
    assert set(composed.values()) == {1} and len(composed) == 2  # seeds are values
