"""An FP stage's key knows every source that carries it out: ours, a plugin's, and the user's own that it imports."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from conftest import TINY, row_of

import repq_cli
from repq_cli.cli import main
from repq_cli.cli.jobs import compose_plain
from repq_cli.train import fp_key as module
from repq_cli.train.fp_cache import stored
from repq_cli.train.fp_key import SOURCES, fp_key, mixed_key

PACKAGE = Path(repq_cli.__file__).parent
CONFIGS = PACKAGE.parent / "configs"
Run = Callable[..., tuple[int, Path | None]]

# What training an FP stage imports and what cannot change its result. A name ending in / is a whole package.
WITHOUT_EFFECT = {
    "errors.py": "words",
    "extras.py": "words",
    "problems.py": "words",
    "bounds.py": "says what is legal",
    "typecheck.py": "says what is legal",
    "config.py": "holds the configuration, which is in the key; what of it is, its annotations say",
    "targets.py": "a part of the configuration",
    "schema.py": "what it decides stands in the configuration, which is in the key",
    "train/options.py": "its defaults are filled into the configuration, which is in the key",
    "files.py": "writes and locks files",
    "memory.py": "refuses what memory does not hold",
    "kept.py": "places of files that runs share",
    "sealed.py": "digests of files",
    "train/mending.py": "what is made again is as it was",
    "text.py": "how numbers are written",
    "runs/": "names, reads and writes a run's files",
    "quant/": "an FP net has no quantizer; what training asks of quantized layers finds none",
    "modes/": "composed after the stage; whether they use branches stands in the key",
    "train/checkpoint.py": "keeps tensors as they are",
    "pretrained/": "layouts of weights that were trained elsewhere",
    "train/fp_weights.py": "reads weights that were trained elsewhere, and the stored stage as it is",
    "train/fp_cache.py": "the place where stages are kept",
    "train/fp_key.py": "makes the key",
    "train/divergence.py": "when a stage ends without a result",
    "train/interrupt.py": "when to stop",
    "train/log.py": "what is said",
    "train/stage_log.py": "what is said",
    "train/world.py": "how processes meet and what they tell each other; that their sums are one process' is tested",
}


def imports(path: Path) -> set[str]:
    """The files of ours that a source imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return files_of(names)


def files_of(names: Iterable[str]) -> set[str]:
    """The files of modules of ours."""
    ours = (name.removeprefix("repq_cli.").replace(".", "/") + ".py" for name in names if name.startswith("repq_cli."))
    return {name for name in ours if (PACKAGE / name).is_file()}


def without_effect(name: str) -> bool:
    return name in WITHOUT_EFFECT or f"{name.partition('/')[0]}/" in WITHOUT_EFFECT


def in_key(name: str) -> bool:
    return name in SOURCES or name.partition("/")[0] in SOURCES


def test_everything_that_training_the_stage_imports_is_in_the_key_or_without_effect() -> None:
    targets = set()
    for path in CONFIGS.rglob("*.yaml"):
        content = yaml.safe_load(path.read_text()) or {}
        for section in (content, *content.values()):
            if isinstance(section, dict) and "_target_" in section:
                targets |= files_of([section["_target_"].rpartition(".")[0]])
    assert len(targets) > 15
    waiting = {"build.py", "train/fp_stage.py", *targets}
    reached: set[str] = set()
    while waiting:
        name = waiting.pop()
        reached.add(name)
        assert in_key(name) or without_effect(name), f"{name}: name it in SOURCES, or say here why it has no effect"
        if in_key(name):
            waiting |= imports(PACKAGE / name) - reached
    assert not {name for name in reached if in_key(name) and without_effect(name)}
    for entry in (*SOURCES, *WITHOUT_EFFECT):
        assert any(name == entry or name.startswith(f"{entry.rstrip('/')}/") for name in reached), f"{entry}: what for?"


def test_a_change_in_any_source_makes_another_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "repq_cli"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(module, "PACKAGE", copy)
    config = compose_plain(["+model=repvgg_a0"])
    seen = {fp_key(config)}
    for name in SOURCES:
        path = copy / name
        changed = path if path.is_file() else sorted(path.glob("*.py"))[-1]
        changed.write_bytes(changed.read_bytes() + b"\n")
        seen.add(fp_key(config))
    assert len(seen) == len(SOURCES) + 1
    (copy / "quant/lsq.py").write_text("")  # a quantizer is no part of it
    (copy / "models/new").mkdir()
    assert fp_key(config) in seen
    (copy / "models/new/net.py").write_text("")
    assert fp_key(config) not in seen


def test_versions_data_and_where_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose_plain(["+model=repvgg_a0"])
    seen = {fp_key(config), fp_key(config, "of some data"), mixed_key("a", "b"), mixed_key("b", "a")}
    real = module.metadata.version
    for name in module.VERSIONS:
        with monkeypatch.context() as patch:
            patch.setattr(module.metadata, "version", lambda asked, name=name: "0" if asked == name else real(asked))
            seen.add(fp_key(config))
    assert len(seen) == 4 + len(module.VERSIONS)
    folders = ["data.train", "data.train_lr", "data.val", "data.val_lr", "data.test"]
    for model, data, keys in (
        ("repvgg_a0", "image_folder", ["data.root"]),
        ("ecbsr_m4c8", "sr_folder", folders),
    ):
        pair = [
            [f"{key}={{s: {root}}}" if key == "data.test" else f"{key}={root}" for key in keys] for root in ("a", "b")
        ]
        one, other = (fp_key(compose_plain([f"+model={model}", f"data={data}", *texts])) for texts in pair)
        assert one == other, data


PLUGIN = """
import torch
from repq_cli.data.base import Data, DataInfo, InMemory, Split

def load(root: str = "x", size: int = 32, crop: int = 0) -> Data:
    images = torch.load("images.pt")
    info = DataInfo("mine", (3, 32, 32), ("a", "b"), (0.5,) * 3, (0.25,) * 3, "none")
    split = {split}
    return Data(info, split, split, {{"test": split}})
"""
PLAIN = "Split(InMemory(images), torch.arange(len(images)) % 2, info)"


def test_all_sources_of_a_plugin_count(in_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its package's, and modules of the user's own that these import, but not installed packages."""
    monkeypatch.syspath_prepend(str(in_folder))
    files = {
        "of_plugin/__init__.py": "",
        "of_plugin/blocks.py": "from of_plugin.deep import parts\nimport numpy, beside_plugin, not_there",
        "of_plugin/deep/parts.py": "WIDTH = 1",
        "of_plugin/unused.py": "def",
        "beside_plugin.py": "import beside_that",
        "beside_that.py": "",
        "named_plugin.py": "",
        "stranger.py": "",
    }
    for name, content in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(content)
    config = compose_plain(["+model=repvgg_a0", "plugins=[of_plugin,named_plugin]"])
    without = fp_key(config)
    own, config = config, replace(config, rep=replace(config.rep, _target_="of_plugin.blocks.block"))
    seen = {without, fp_key(config)}
    for name in files:
        Path(name).write_text(Path(name).read_text() + "\n# changed")
        before = len(seen)
        seen.add(fp_key(config))
        assert (len(seen) > before) == (name != "stranger.py"), name
    moved = in_folder / "moved"
    moved.mkdir()
    for name in {name.partition("/")[0] for name in files}:
        shutil.move(name, moved)
    monkeypatch.syspath_prepend(str(moved))
    assert fp_key(config) in seen
    assert fp_key(own) == fp_key(compose_plain(["+model=repvgg_a0"]))


@pytest.mark.no_cover  # tracing would cost more than it tells
@pytest.mark.parametrize("known", [True, False])
def test_a_plugins_data_never_gets_a_stage_of_other_data(
    known: bool, run_repq: Run, in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it holds in memory is hashed; where a split of its own does not tell, nothing is shared."""
    import torch

    name = f"data_plugin_{known}"
    own = "type('Own', (Split,), {'listing': lambda self: None})" + PLAIN.removeprefix("Split")
    Path(f"{name}.py").write_text(PLUGIN.format(split=PLAIN if known else own))
    monkeypatch.syspath_prepend(str(in_folder))
    torch.save(torch.zeros(16, 3, 32, 32, dtype=torch.uint8), "images.pt")
    arguments = [text for text in TINY if text not in ("fp.reuse=false", "verbosity=quiet")]
    arguments += [f"plugins=[{name}]", f"data._target_={name}.load", "data.batch_size=8", "qat.epochs=0"]

    def trains() -> bool:
        code, folder = run_repq("train", *arguments)
        assert code == 0 and folder is not None
        assert len(row_of(folder)["lineage"]["fp_cache"]) == 16
        return "FP epoch" in (folder / "train.log").read_text()

    assert trains()
    assert trains() == (not known)
    torch.save(torch.ones(16, 3, 32, 32, dtype=torch.uint8), "images.pt")
    assert trains()
    assert len(stored()) == 2 * known
    assert ("does not tell what it consists of" in capsys.readouterr().out) == (not known)
    assert main(["cache", "list"]) == 0
