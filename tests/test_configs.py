"""Every YAML composes, validates and builds; every experiment runs a step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import repq_cli.configs
import torch
import yaml
from conftest import random_data, random_pictures
from hydra import compose as compose_tree
from hydra import initialize_config_module

from repq_cli import build
from repq_cli.cli.composing import CONFIGS, VERSION_BASE
from repq_cli.cli.hydra_app import plain
from repq_cli.cli.jobs import compose_plain
from repq_cli.config import DEFAULTS, Config
from repq_cli.modes.calibrate import calibrate
from repq_cli.modes.compose import compose
from repq_cli.schema import validate
from repq_cli.train.engine import training_step
from repq_cli.train.fp_key import fp_key
from repq_cli.train.optim import make_optimizer

pytestmark = pytest.mark.no_cover  # many cases of lines that other tests cover as well

ROOT = Path(repq_cli.configs.__file__).parent
GROUPS = sorted(path.relative_to(ROOT) for path in ROOT.glob("*/*.yaml") if path.parent.name != "hydra")
OVERRIDES = {
    "data/image_folder.yaml": ["data.root=x"],
    "model/timm.yaml": ["model.arch=mobileone_s0", "model.drop_strides=2"],
    "model/torchvision.yaml": ["model.arch=resnet18"],
    "model/module.yaml": ["model.target=foreign_nets.small", "plugins=[foreign_nets]"],
    "rep/own.yaml": ["model.arch=resnet18"],
}
PICTURES = ("data/photos.yaml", "data/sr_folder.yaml", "rep/ecb.yaml")  # not for every network


def composed(path: Path) -> Config:
    """The configuration with this one option chosen."""
    group, option = path.parent.name, path.stem
    prefix = "+" if group in ("model", "experiment", "sweep") else ""
    default = "ecbsr" if path.as_posix() in PICTURES else "torchvision" if option == "own" else "repvgg_a0"
    model = [] if group in ("model", "experiment") else [f"+model={default}"]
    return compose_plain([f"{prefix}{group}={option}", *model, *OVERRIDES.get(path.as_posix(), [])])


def test_every_option_composes_and_validates(subtests: pytest.Subtests) -> None:
    for path in GROUPS:
        with subtests.test(path=str(path)):
            config = composed(path)
            assert validate(config.stored(), build.target_arguments) == []
            assert Config.of(config.stored()) == Config.of(config.as_dict()) == config
            assert config.mode.name != "auto"


@pytest.mark.parametrize("path", [path for path in GROUPS if path.parent.name in ("model", "rep")], ids=str)
def test_every_network_builds_and_answers(path: Path) -> None:
    if path.stem == "timm":
        pytest.importorskip("timm", reason="timm is an extra")
    config = composed(path)
    if config.task == "super_resolution":
        scale, _ = config.model.enlarging
        net = build.network_maker(config, random_pictures(scale).info)()
        assert net.eval()(torch.rand(2, 1, 7, 9)).shape == (2, 1, 7 * scale, 9 * scale)
        return
    info = random_data().info
    net = build.network_maker(config, info)()
    assert net.eval()(torch.randn(2, *info.shape)).shape == (2, info.num_classes)


@pytest.mark.parametrize("path", [path for path in GROUPS if path.parent.name == "experiment"], ids=str)
def test_every_experiment_runs_a_step(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = composed(path)
    pictures = config.task == "super_resolution"
    tree = config.as_dict()
    tree["data"]["batch_size"] = 10
    if not pictures:
        tree["model"]["width"] = 0.125
    config = Config.of(tree)
    loaded = random_pictures(config.model.enlarging[0]) if pictures else random_data()
    monkeypatch.setattr(build, "data", lambda config: loaded)
    experiment = build.experiment(config)
    fp_net = experiment.make_net()
    net = compose(fp_net, experiment.mode, experiment.quant)
    (x, y) = next(experiment.data.train.training_batches(10, 0))
    calibrate(net, x, experiment.quant.init, fp_net)
    optimizer = make_optimizer(net, experiment.optim, experiment.qat.lr)
    loss, _ = training_step(net.train(), (x, y), experiment.task, optimizer, experiment.qat.lr, None)
    assert loss > 0


def test_the_default_of_a_key_is_the_one_of_the_configuration_files() -> None:
    """Of all but those that the recipe of the default data brings."""
    found: dict[str, object] = {}
    for optimiser in ("adamw", "sgd"):
        with initialize_config_module(CONFIGS, **VERSION_BASE):
            tree = plain(compose_tree("train", overrides=["+model=resnet18", f"optim={optimiser}"]))
        found |= flat(tree)
    recipe = flat(yaml.safe_load((ROOT / "data/digits.yaml").read_text())).keys() - {"data.batch_size"}
    of_files = {key: value for key, value in found.items() if key in DEFAULTS and key not in recipe}
    assert json.loads(json.dumps({key: DEFAULTS[key] for key in of_files})) == of_files
    of_fp = {f"qat.{key}" for key in ("checkpoint", "format", "weights", "head", "input", "merged_training", "reuse")}
    assert DEFAULTS.keys() - of_files.keys() == {"input_shape", "mode.freeze_bn_after", *of_fp}


def flat(tree: dict[str, Any]) -> dict[str, object]:
    """Values under keys such as ``fp.lr``."""
    sections = {name: values if isinstance(values, dict) else {"": values} for name, values in tree.items()}
    return {f"{name}.{key}".rstrip("."): value for name, values in sections.items() for key, value in values.items()}


def test_the_fp_key_depends_on_what_determines_the_fp_stage() -> None:
    def key(*overrides: str) -> str:
        return fp_key(compose_plain(["+model=repvgg_a0", *overrides]))

    base = key("quant=w4a4", "mode=repq_bn")
    assert base == key("quant=w2a2", "mode=merged") == key("qat.epochs=1", "runtime.log_every=3")
    others = [
        key("mode=plain"),
        key("seed=1"),
        key("fp.epochs=3"),
        key("rep=none"),
        key("model.width=0.5"),
        key("data.crop=1"),
        key("optim=adamw"),
    ]
    assert others[0] == others[3], "rep=none and mode=plain have one FP stage"
    assert len({base, *others}) == 7
    assert key("data=cifar10", "data.root=a") == key("data=cifar10", "data.root=b")
