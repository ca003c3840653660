"""The import rules that keep the rooms apart, and who may know what a run folder holds."""

from __future__ import annotations

import ast
import graphlib
from collections import defaultdict
from pathlib import Path

import repq_cli
from repq_cli.runs.folder import RunFolder
from repq_cli.runs.sweep import SweepFolder

PACKAGE = Path(repq_cli.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# A room and the rooms of ours that it imports, beside the files that every part may use.
SHARED = {
    "answers",
    "batch_norm",
    "bounds",
    "collective",
    "devices",
    "effects",
    "errors",
    "files",
    "kept",
    "memory",
    "neighbours",
    "parts",
    "precision",
    "ranks",
    "sealed",
    "seeds",
    "shared_norm",
    "strided_points",
}
SHARED |= {"text", "typecheck", "yaml_text"}
ALLOWED: dict[str, set[str]] = {
    "reparam": set(),
    "quant": set(),
    "images": set(),
    "runs": set(),
    "tasks": {"images"},
    "data": {"images"},
    "graphs": {"models", "quant", "reparam"},
    "models": {"extras", "reparam", "library"},  # the door, where a network is asked for by name
    "pretrained": {"models", "reparam"},
    "modes": {"models", "reparam", "quant"},
    "deploy": {"quant"},
    "report": {"config", "runs", "targets"},
    "bench": {
        "extras",
        "deploy",
        "modes",
        "reparam",
        "quant",
        "models",
        "tasks",
        "data",
        "train",
        "report",
        "library",
        "build",
        "config",
        "targets",
    },
    "train": {
        "pretrained",
        "data",
        "modes",
        "quant",
        "reparam",
        "tasks",
        "deploy",
        "images",
        "runs",
        "config",
        "extras",
    },
}
# What a mode is, without torch: every room may ask.
SAYS_WHAT_MODES_ARE = ("repq_cli.modes.catalogue", "repq_cli.modes.mode.")
HYDRA_ROOMS = {"cli"}
WITHOUT_TORCH = {"report", "runs", "config", "command_keys", "schema", "targets", "effects", "text", "yaml_text"}
NAMES_WITHIN = {"kept.py": {".lock"}}  # of what runs share


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_rooms_import_what_they_may_and_may_import_what_they_do() -> None:
    ours, outside = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set)
    for path in FILES:
        names = imports(path)
        asked = {name for name in names if name.startswith("repq_cli.") and not name.startswith(SAYS_WHAT_MODES_ARE)}
        ours[room(path)] |= {name.split(".")[1] for name in asked}
        outside[room(path)] |= {name.split(".")[0] for name in names} - {"repq_cli"}
    assert {name: ours[name] - SHARED - {name} for name in ALLOWED} == ALLOWED
    assert set().union(*ours.values()) >= SHARED
    assert {name for name in outside if outside[name] & {"hydra", "omegaconf"}} == HYDRA_ROOMS
    assert not any("torch" in outside[name] for name in WITHOUT_TORCH)
    for name in ("reparam", "quant", "tasks"):
        standard = {
            "__future__",
            "collections",
            "contextlib",
            "copy",
            "dataclasses",
            "functools",
            "math",
            "typing",
            "weakref",
        }
        assert outside[name] <= {"torch", *standard}


def test_no_file_of_the_command_line_is_in_a_circle() -> None:
    """Imports inside functions count, and so do functions that are named in a string and imported when called."""
    modules = {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (PACKAGE / "cli").glob("*.py")
    }
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        texts = {node.value for node in ast.walk(tree(path)) if isinstance(node, ast.Constant)}
        named = {text.partition(":")[0] for text in texts if isinstance(text, str)}
        imported = {name if name in modules else name.rpartition(".")[0] for name in imports(path)}
        graph[module] = (named | imported) & set(modules)
    assert {"repq_cli.cli.evaluate", "repq_cli.cli.train", "repq_cli.cli.table"} <= graph["repq_cli.cli.commands"]
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_only_runs_knows_the_names_of_what_a_run_folder_holds() -> None:
    run, sweep = RunFolder("run"), SweepFolder("run")
    paths = [*vars(run).values(), *vars(sweep).values(), run.crops_of("set").values]
    names = {path.name for path in paths if path != Path("run")} | {".lock"}
    assert {"summary.json", "fp.pt", "deploy", "sweep.json"} <= names
    for path in FILES:
        if room(path) != "runs":
            parts = {node.right for node in ast.walk(tree(path)) if isinstance(node, ast.BinOp)}
            words = {node.value for node in ast.walk(tree(path)) if isinstance(node, ast.Constant)} & names
            joined = {part.value for part in parts if isinstance(part, ast.Constant)} & names
            known = {word for word in words if "." in word} | joined
            assert known <= NAMES_WITHIN.get(path.relative_to(PACKAGE).as_posix(), set()), path


def test_nothing_private_of_torch_and_no_torch_ao() -> None:
    for path in FILES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("torch", "F"):
                private = node.attr.startswith("_") and not node.attr.startswith("__")
                assert not private, f"{path}: torch.{node.attr}"
        assert not {name for name in imports(path) if name.startswith(("torch.ao", "torch._"))}


def test_files_stay_short() -> None:
    long = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in FILES}
    assert {name: lines for name, lines in long.items() if lines > 320} == {}
