"""Files that somebody sent are data: no run folder, sweep or configuration folder starts code that was not named."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TINY
from synthetic_runs import done

from repq_cli import build
from repq_cli.cli import main
from repq_cli.cli.hydra_rules import LAUNCHERS
from repq_cli.cli.terminal import Shown
from repq_cli.errors import ConfigError, DataError
from repq_cli.report.render.data import FORMULA
from repq_cli.runs.folder import RunFolder
from repq_cli.runs.sweep import PLAN
from repq_cli.schema import KEYS
from repq_cli.targets import registered
from repq_cli.text import INVISIBLE

EVIL = """
import pathlib
from os import system
from repq_cli.reparam.repvgg import repvgg_block as borrowed
pathlib.Path("PWNED").touch()
def block(geometry, activation=None):
    return borrowed(geometry, activation)
def call(*args, **kwargs):
    pathlib.Path("PWNED").touch()
"""
TOUCH = "touch PWNED"


@pytest.fixture
def evil(in_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A module that leaves a mark when it is imported; asserts that there is none."""
    (in_folder / "evil.py").write_text(EVIL)
    (in_folder / "evil_pkg").mkdir()
    (in_folder / "evil_pkg/__init__.py").write_text(EVIL)
    (in_folder / "evil_pkg/blocks.py").write_text(EVIL)
    monkeypatch.syspath_prepend(str(in_folder))
    for name in [name for name in sys.modules if name.startswith("evil")]:
        monkeypatch.delitem(sys.modules, name)

    def nothing_ran() -> None:
        assert not (in_folder / "PWNED").exists()

    return nothing_ran


def changed(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    found = json.loads(json.dumps(tree))
    for key, value in changes.items():
        *path, last = key.split(".")
        node = found
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return dict(found)


STORED: list[dict[str, Any]] = [
    *({"rep._target_": target, "rep.command": TOUCH} for target in (
        "os.system", "posix.system", "subprocess.call", "builtins.eval", "builtins.exec", "__import__", "eval", "",
        "evil", "evil.call", "evil.block", "evil_pkg.blocks.block", "importlib.import_module", "runpy.run_path",
        "repq_cli.cli.table.table", "repq_cli.cli.main", "repq_cli.cli.commands.info", "repq_cli.cli.cache.run",
        "repq_cli.files.write_atomically", "repq_cli.files.shutil.rmtree", "repq_cli.runs.folder.shutil.rmtree",
        "repq_cli.build.importlib.import_module", "repq_cli.cli.hydra_app.resolve_name", "repq_cli.errors.ConfigError",
        "repq_cli.reparam.repvgg.RepVGG", "repq_cli.reparam.repvgg.repvgg_block.__globals__",
        "repq_cli.reparam.repvgg.repvgg_block.__call__", "repq_cli.reparam.repvgg.__builtins__.eval",
        "repq_cli.reparam.repvgg.nn.Module", "repq_cli.models.repvgg.repvgg", "repq_cli.data.digits.load",
        "repq_cli.reparam.repvgg.repvgg_block ", " repq_cli.reparam.repvgg.repvgg_block", "repq_cli..evil",
        "repq_cli/reparam/repvgg", "torch.optim.SGD", "torch.load", "torch.optim.sgd.torch.hub.load", "torch.nn.Module",
        "hydra.utils.instantiate", "${oc.decode:evil.call}", "${oc.env:HOME}",
    )),
    {"rep._target_": ["evil.call"]},
    {"rep._target_": {"_target_": "evil.call"}},
    {"rep._target_": None},
    {"model._target_": "repq_cli.reparam.repvgg.repvgg_block"},
    {"model._target_": "repq_cli.models.repvgg.nn.Sequential"},
    {"data._target_": "repq_cli.data.torchvision_sets.download_url"},
    {"data._target_": "repq_cli.models.repvgg.repvgg"},
    {"data._target_": "repq_cli.data.digits.describe"},
    {"optim._target_": "evil.call"},
    {"schedule._target_": "evil.call"},
    {"_target_": "evil.call"},
    {"rep._partial_": True},
    {"rep._args_": [TOUCH]},
    {"rep._recursive_": True, "rep._convert_": "all"},
    {"rep.activation": {"_target_": "evil.call"}},
    {"rep.geometry": {"_target_": "evil.call"}},
    {"model.make_block": {"_target_": "evil.call"}},
    {"model.width": {"_target_": "evil.call"}},
    {"data.upscaling": {"_target_": "evil.call"}},
    *({"plugins": plugins, "rep._target_": "evil.block"} for plugins in (
        ["evil"], ["evil", "os"], "evil", {"evil": 1}, ["repq_cli"], ["*"], [""], ["."], ["builtins"], [["evil"]],
        ["${oc.env:HOME}"],
    )),
    {"plugins": ["subprocess"], "rep._target_": "subprocess.call", "rep.popenargs": TOUCH},
    {"plugins": ["evil"]},
    {"hydra.callbacks.x._target_": "evil.call"},
    *({"model.name": name} for name in ("../../x", "/tmp/x", "a/b", "..", "", "a" * 300, "\x1b[2J", "a\nb", "${x}")),
]  # fmt: skip


def test_no_stored_configuration_starts_code(
    finished: Path, evil: Callable[[], None], subtests: pytest.Subtests
) -> None:
    folder = RunFolder(finished)
    config = folder.read_config()
    assert build.stored(folder, [])
    for changes in STORED:
        with subtests.test(str(changes)):
            folder.write_config(changed(config, changes))
            with pytest.raises((ConfigError, DataError)):
                build.stored(folder, [])
            evil()
    for text in (
        "rep: !!python/object/apply:os.system ['touch PWNED']",
        "!!python/module:evil",
        "a: !!python/name:evil.call",
    ):
        folder.config_file.write_text(f"{text}\nruntime: {{}}\n")
        with pytest.raises(DataError):
            build.stored(folder, [])
    evil()


def test_a_run_of_plugins_goes_on_once_they_are_named(
    finished: Path, evil: Callable[[], None], capsys: pytest.CaptureFixture[str], subtests: pytest.Subtests
) -> None:
    folder = RunFolder(finished)
    section = {"name": "mine", "_target_": "evil_pkg.blocks.block", "batch_norm": True, "kernels": [3]}
    folder.write_config(folder.read_config() | {"plugins": ["evil_pkg"], "rep": section})
    commands = {
        "eval": ["eval", f"run={folder}", "verbosity=quiet"],
        "export": ["export", f"run={folder}", "format=packed"],
        "diagnose": ["diagnose", f"run={folder}", "images=8"],
        "bench": ["bench", f"runs=[{folder}]", "rounds=1", "batch=1"],
        "resume": ["train", f"resume={folder}"],
    }
    for name, arguments in commands.items():
        with subtests.test(name):
            assert main(arguments) == 2
            assert "add plugins=[evil_pkg]." in capsys.readouterr().err
            assert main([*arguments, "plugins=[evil]"]) == 2
            evil()
    for name in ("eval", "export", "bench"):
        with subtests.test(f"{name}, named"):
            assert main([*commands[name], "plugins=[evil_pkg]"]) == 0, capsys.readouterr().err
    assert build.stored(folder, ["evil_pkg"]).rep.target == "evil_pkg.blocks.block"


OF_PLUGIN = [
    ("evil.system", "names neither a function nor a class"),
    ("evil.borrowed", "is defined in repq_cli.reparam.repvgg, which is not of evil"),
    ("evil.pathlib.Path", "names nothing that can be imported"),
    ("evil.__builtins__.eval", "is none of repq's functions for rep and of no package in plugins"),
    ("evil.pathlib", "names neither a function nor a class"),
    ("evil_pkg.block", "is none of repq's functions for rep"),
]


def test_a_plugin_is_what_it_defines_itself(evil: Callable[[], None], subtests: pytest.Subtests) -> None:
    for target, said in OF_PLUGIN:
        with subtests.test(target), pytest.raises(ConfigError, match=said):
            build.resolve("rep", target, ["evil"])
    assert build.resolve("rep", "evil_pkg.blocks.block", ["evil_pkg"]).__name__ == "block"


OPTUNA = ["hydra/sweeper=optuna", "seed=0,1", "-m"]
FILES: list[tuple[str, str, list[str]]] = [
    ("experiment/x.yaml", "plugins: [evil]\nrep: {_target_: evil.block}", []),
    ("experiment/x.yaml", "plugins: ['${oc.decode:evil}']", []),
    ("experiment/x.yaml", "hydra: {callbacks: {x: {_target_: evil.call}}}", []),
    ("experiment/x.yaml", "hydra: {launcher: {_target_: evil.call}}", ["-m"]),
    ("experiment/x.yaml", "hydra: {launcher: {_target_: '${oc.decode:evil.call}'}}", ["-m"]),
    ("experiment/x.yaml", "hydra: {launcher: {x: {_target_: evil.call}}}", ["-m"]),
    ("experiment/x.yaml", "hydra: {sweeper: {_target_: evil.call}}", ["-m"]),
    ("experiment/x.yaml", "hydra: {sweeper: {params: {seed: '0,1', plugins: '[evil]'}}}", ["-m"]),
    ("experiment/x.yaml", "hydra: {sweeper: {storage: 'sqlite:///PWNED'}}", OPTUNA),
    ("experiment/x.yaml", "hydra: {sweeper: {sampler: {_target_: evil.call}}}", OPTUNA),
    ("experiment/x.yaml", "defaults: [{override /hydra/sweeper: optuna}]", ["-m"]),
    ("hydra/sweeper/mine.yaml", "_target_: evil.call", ["hydra/sweeper=mine", "seed=0,1", "-m"]),
    ("hydra/launcher/x.yaml", "_target_: @SLURM\ncomment: \"a\\ntouch PWNED\"", ["hydra/launcher=x", "-m"]),
    ("hydra/launcher/x.yaml", "_target_: @SLURM\nsubmitit_folder: elsewhere", ["hydra/launcher=x", "-m"]),
    ("hydra/launcher/x.yaml", "_target_: @RAY\nray: {init: {address: evil, num_cpus: 1}}",
     ["hydra/launcher=x", "hydra.launcher.ray.init.num_cpus=2", "-m"]),
    ("experiment/x.yaml", "hydra: {mode: MULTIRUN}", []),
    ("experiment/x.yaml", "hydra: {job_logging: {handlers: {x: {(): evil.call}}}}", []),
    ("experiment/x.yaml", "hydra: {hydra_logging: {handlers: {x: {class: logging.FileHandler, filename: PWNED}}}}", []),
    ("experiment/x.yaml", "hydra: {hydra_logging: {formatters: {simple: {class: evil.call}}}}", []),
    ("experiment/x.yaml", "hydra: {hydra_logging: {handlers: {console: {stream: 'ext://evil.call'}}}}", []),
    ("experiment/x.yaml", "hydra: {searchpath: ['pkg://evil']}", []),
    ("experiment/x.yaml", "hydra: {job: {env_set: {LD_PRELOAD: x.so}}}", []),
    ("experiment/x.yaml", "hydra: {output_subdir: /tmp/PWNED}", []),
    ("experiment/x.yaml", "a: !!python/object/apply:os.system [touch PWNED]", []),
    ("hydra/callbacks/x.yaml", "x: {_target_: evil.call}", ["hydra/callbacks=x"]),
    ("hydra/launcher/x.yaml", "_target_: evil.call", ["hydra/launcher=x", "-m"]),
    ("hydra/launcher/x.yaml", "_target_: hydra_plugins.evil.Launcher", ["hydra/launcher=x", "-m"]),
    ("hydra/job_logging/x.yaml", "version: 1\nhandlers: {x: {(): evil.call}}", ["hydra/job_logging=x"]),
    ("rep/x.yaml", "name: x\n_target_: evil.block\nbatch_norm: true\nkernels: [3]", ["rep=x"]),
    ("sweep/x.yaml", "hydra: {sweeper: {params: {plugins: '[evil]'}}}", ["+sweep=x"]),
    ("sweep/x.yaml", "hydra: {sweeper: {params: {hydra.searchpath: '[pkg://evil]'}}}", ["+sweep=x"]),
    ("train.yaml", "plugins: [evil]\nhydra: {callbacks: {x: {_target_: evil.call}}}", ["seed=-1"]),
]  # fmt: skip
TYPED = [
    ["hydra.searchpath=[pkg://evil]"],
    ["hydra={searchpath: [pkg://evil]}"],
    ["+hydra.callbacks.x._target_=evil.call"],
    ["hydra.launcher._target_=evil.call", "-m"],
    ["+hydra.launcher.x={_target_: evil.call}", "-m"],
    ["hydra.sweeper._target_=evil.call", "-m"],
    ["+hydra.job_logging.handlers.x.()=evil.call"],
    ["+hydra.hydra_logging.handlers.x={class: evil.call}"],
    ["hydra.hydra_logging.handlers.console.class=evil.call", "--cfg", "job"],
    ["rep._target_=evil.block"],
    ["rep._target_=os.system", "plugins=[os]"],
    ["rep._target_=repq_cli.cli.main", "plugins=[repq_cli]"],
    ["rep._target_=evil.block", "plugins=[evil_pkg]"],
]


@pytest.mark.parametrize("part", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_no_configuration_folder_and_no_key_of_hydras_starts_code(
    part: int, in_folder: Path, evil: Callable[[], None], capsys: pytest.CaptureFixture[str], subtests: pytest.Subtests
) -> None:
    for number, (name, text, arguments) in enumerate(FILES[part::2]):
        with subtests.test(f"{name}: {text}"):
            file = in_folder / f"mine {number}" / name
            file.parent.mkdir(parents=True)
            is_global = name.startswith(("experiment", "sweep"))
            text = text.replace("@SLURM", LAUNCHERS[3]).replace("@RAY", LAUNCHERS[4])
            file.write_text(f"# @package _global_\n{text}" if is_global else text)
            arguments = ["+experiment=x", *arguments] if name.startswith("experiment") else arguments
            assert main(["train", "+model=repvgg_a0", *arguments, "--config-dir", f"mine {number}"]) == 2
            said = capsys.readouterr().err
            assert said.startswith("repq: ") and "Traceback" not in said
            evil()
    for arguments in TYPED[part::2]:
        with subtests.test(" ".join(arguments)):
            assert main(["train", "+model=repvgg_a0", *arguments]) == 2
            assert "Traceback" not in capsys.readouterr().err
            evil()
    assert not (in_folder / "outputs").exists()


def test_no_stored_sweep_starts_code(
    in_folder: Path, evil: Callable[[], None], capsys: pytest.CaptureFixture[str], subtests: pytest.Subtests
) -> None:
    own = [text for text in TINY if not text.startswith("verbosity")]
    (in_folder / "mine/experiment").mkdir(parents=True)
    (in_folder / "mine/experiment/x.yaml").write_text(
        "# @package _global_\nhydra: {callbacks: {x: {_target_: evil.call}}}"
    )
    plans: list[tuple[list[str], list[str]]] = [
        (["plugins=choice([evil])", "rep._target_=evil.block"], ["-m"]),
        (["hydra.searchpath=[pkg://evil]"], ["-m"]),
        (["+hydra.callbacks.x._target_=evil.call"], ["-m"]),
        (["hydra.launcher._target_=evil.call"], ["-m"]),
        (["+hydra.job.env_set.LD_PRELOAD=x.so"], ["-m"]),
        (["+experiment=x"], ["-m", "--config-dir", "mine"]),
        (["rep._target_=evil.block"], ["-m"]),
        (["hydra/sweeper=optuna", "hydra.sweeper.storage=sqlite:///PWNED", "fp.lr=interval(0.1,0.2)"], ["-m"]),
        ([], ["--cfg", "job"]),
        ([], ["-m", "--config-path", "mine"]),
    ]
    for overrides, flags in plans:
        with subtests.test(f"{overrides} {flags}"):
            jobs = [{"number": 0, "overrides": [*own, *overrides], "key": "0", "left_out": None}]
            trials = 3 if "hydra/sweeper=optuna" in overrides else None
            content = {"command": "", "overrides": [*own, *overrides], "flags": flags, "jobs": jobs, "trials": trials}
            (in_folder / PLAN).write_text(json.dumps(content))
            assert main(["train", "resume=."]) in (2, 3)
            assert "Traceback" not in capsys.readouterr().err
            evil()


def test_sections_name_what_the_project_ships_and_commands_know_plugins() -> None:
    for section in ("model", "rep", "data"):
        assert registered(section) and all(build.resolve(section, target, []) for target in registered(section))
    assert all("plugins" in keys for keys in KEYS.values())


def test_what_is_no_plugin_is_refused_before_it_is_imported(finished: Path, evil: Callable[[], None]) -> None:
    folder = RunFolder(finished)
    tree = folder.read_config()
    for name in ("os", "subprocess", "builtins", "repq_cli", "repq_cli.cli", "", "..", "evil; import os", "__main__"):
        folder.write_config(tree | {"plugins": [name], "rep": tree["rep"] | {"_target_": f"{name}.call"}})
        with pytest.raises(ConfigError, match="plugin"):
            build.stored(folder, [name])
    assert yaml.safe_load(folder.config_file.read_text())["plugins"] == ["__main__"]
    evil()


HOSTILE = [
    "=1+1",
    "+1",
    "-1+1",
    "@SUM(A1)",
    "\t=1",
    "\x1b]0;title\x07",
    "\x1b[2J",
    "a\u202eb",
    "\x9b31m",
    "\u2066x",
    "\r=1",
]


def test_no_name_reaches_a_terminal_a_table_or_a_spreadsheet_raw(
    in_folder: Path, capsys: pytest.CaptureFixture[str], subtests: pytest.Subtests
) -> None:
    for number, name in enumerate(HOSTILE):
        done(
            in_folder / "runs" / f"{number}{name}",
            {"model.name": name, "data.name": name, "rep.name": name},
            70.0,
            71.0,
        )
    (in_folder / "runs/\x1b[2Jbad").mkdir()
    (in_folder / "runs/\x1b[2Jbad/summary.json").write_text("{")
    for form in ("markdown", "latex", "csv", "json"):
        with subtests.test(form):
            assert main(["table", "runs", "--format", form]) == 0
            out = "".join(capsys.readouterr())
            assert not INVISIBLE.search(out) and "71.0" in out
            if form == "csv":
                cells = [cell for line in csv.DictReader(io.StringIO(out)) for cell in line.items()]
                texts = [text for key, text in cells if key not in ("value", "std", "n") and text]
                assert len(texts) > 100 and not [text for text in texts if str(text).startswith(FORMULA)]
            if form == "json":
                assert "\x1b[2J" in str(json.loads(out)).encode().decode("unicode_escape")
    for arguments in (
        ["plot", "\x1b[2J"],
        ["eval", "run=\x1b[2J"],
        ["train", "+model=\x1b[2J"],
        ["\x1b[2J"],
        ["cache", "\x1b"],
    ):
        with contextlib.suppress(SystemExit):  # argparse's
            assert main(arguments) in (2, 3)
        assert not INVISIBLE.search("".join(capsys.readouterr()))


def test_bars_still_move_on_a_terminal() -> None:
    stream = io.StringIO()
    Shown(stream, bars=True).write("\r50 %\x1b[A\x1b[2J")
    assert stream.getvalue() == "\r50 %\x1b[A\\x1b[2J"
