"""The configuration as an object: what a key affects, what config.yaml holds, and what earlier versions left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from repq_cli import build
from repq_cli.cli import main
from repq_cli.cli.jobs import compose_plain, run_key, same_data, same_run
from repq_cli.config import DEFAULTS, Config
from repq_cli.errors import ConfigError
from repq_cli.report.reading import _options
from repq_cli.runs.folder import RunFolder
from repq_cli.train.fp_key import fp_key

IMAGES = ["+model=resnet18", "rep=acnet", "mode=merged", "data=image_folder", "data.root=x"]
NAMED = ["+model=resnet18", "data=cifar10"]
PICTURES = ["+model=ecbsr_m4c8", "data=sr_folder", "data.train=x", "data.test={a: b}"]

# Keys with another value, by what that makes another: the (F)P stage's key, the run's (h)ash, its line in (t)ables.
EFFECTS: dict[str, list[tuple[list[str], dict[str, Any]]]] = {
    "Fht": [
        (
            IMAGES,
            {
                "psnr_rounding": False,
                "fp.epochs": 3,
                "fp.merged_training": True,
                "optim.bias_lr": 2.0,
                "schedule.final_lr": 0.1,
                "rep.batch_norm": False,
                "rep.kernels": [3],
                "rep.gamma_init": 0.5,
                "model.width": 0.5,
                "data.batch_size": 32,
                "data.crop": 1,
                "runtime.precision": "bf16",
                "runtime.matmul": "high",
            },
        )
    ],
    "Fh-": [(IMAGES, {"seed": 1})],
    "-ht": [
        (
            IMAGES,
            {
                "fp.weights": "ema",
                "fp.head": "new",
                "fp.input": "sum",
                "qat.lr": 0.5,
                "quant.init": "lsq",
                "mode.post_bn": True,
                "data.root": "y",
            },
        ),
        (PICTURES, {"data.train": "y", "data.val": "y"}),
    ],
    "-h-": [
        (IMAGES, {"plugins": ["json"], "fp.checkpoint": "y", "fp.format": "timm"}),
        (NAMED, {"data.root": "y"}),
        (PICTURES, {"data.test": {"c": "d"}}),
    ],
    "---": [
        (
            IMAGES,
            {
                "verbosity": "quiet",
                "runtime.tile": 64,
                "runtime.channels_last": True,
                "runtime.device": "cpu",
                "runtime.changed_data": "accept",
                "fp.reuse": False,
                "data.workers": 7,
                "data.cache_mib": 1,
            },
        ),
        (NAMED, {"data.download": True}),
    ],
}


def changed(config: Config, key: str, value: object) -> Config:
    section, _, name = key.partition(".")
    tree = config.as_dict()
    return Config.of(tree | {section: tree[section] | {name: value} if name else value})


def test_what_a_key_affects_is_what_its_annotation_says() -> None:
    for expected, cases in EFFECTS.items():
        for overrides, keys in cases:
            config = compose_plain(overrides)
            for key, value in keys.items():
                other = changed(config, key, value)
                differs = {
                    "F": fp_key(other) != fp_key(config),
                    "h": run_key(other) != run_key(config),
                    "t": _options(other.as_dict()) != _options(config.as_dict()),
                }
                assert "".join(word if differs[word] else "-" for word in differs) == expected, key
                assert same_run(config, other) == (not differs["h"]), key
    plugin = changed(compose_plain(NAMED), "data._target_", "mine.load")
    assert fp_key(changed(plugin, "data.root", "y")) != fp_key(plugin), "nothing is known of a plugin's arguments"
    images = compose_plain(IMAGES)
    assert same_data(images, changed(images, "data.workers", 7)) and not same_data(images, compose_plain(NAMED))


def test_config_yaml_holds_what_was_given_with_the_values_of_now() -> None:
    config = compose_plain(["+model=repvgg_a0", "optim=sgd"])
    stored = config.stored()
    assert "betas" not in stored["optim"] and config.optim.betas == (0.9, 0.999) and "checkpoint" not in stored["qat"]
    assert replace(config, verbosity="quiet").stored() == stored | {"verbosity": "quiet"}
    assert Config.of(yaml.safe_load(yaml.safe_dump(stored))) == config


def test_a_stored_configuration_has_what_its_run_had(in_folder: Path) -> None:
    """Where it lacks a key: the default, or what runs did before there was the key."""
    config = compose_plain(["+model=ecbsr_m4c8", "quant=w2a2", "mode.post_bn=true", "fp.weights=auto"])
    tree = config.stored()
    for key in ("mode.post_bn", "fp.merged_training", "fp.weights", "data.low_rounding", "optim.label_smoothing"):
        section, _, name = key.partition(".")
        del tree[section][name]
    folder = RunFolder(in_folder)
    folder.write_config(tree)
    found = build.stored(folder, [])
    assert found.mode.post_bn is False and found.fp.merged_training is False and found.data.low_rounding == "once"
    assert found.optim.label_smoothing == 0 and found.fp.weights == DEFAULTS["fp.weights"] == "auto"
    assert found.stored().keys() == config.stored().keys()
    del tree["rep"]["batch_norm"]
    folder.write_config(tree)
    with pytest.raises(ConfigError, match=r"rep\.batch_norm=… is missing from the configuration"):
        build.stored(folder, [])


def test_an_optimiser_of_ones_own_names_every_key_that_has_no_default(
    in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("optim").mkdir()
    Path("optim/mine.yaml").write_text("name: sgd\nweight_decay: 1e-3\n")
    assert main(["train", "--config-dir", ".", "+model=repvgg_a0", "optim=mine"]) == 2
    assert "optim.label_smoothing=… is missing from the configuration" in capsys.readouterr().err
