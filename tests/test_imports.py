"""The import rules that keep the rooms apart."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import repq_cli

PACKAGE = Path(repq_cli.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# A package (or file) and the packages of ours that it may import, beside the files every part may use.
SHARED = {"batch_norm", "errors", "files", "seeds", "bounds", "typecheck", "devices"}
ALLOWED = {
    "reparam": {"reparam"},
    "quant": {"quant"},
    "images": {"images"},
    "tasks": {"tasks", "images"},
    "data": {"data", "images"},
    "models": {"models", "reparam", "quant"},
    "modes": {"modes", "models", "reparam", "quant"},
    "deploy": {"deploy", "models", "modes", "quant", "reparam"},
    "report": {"report"},
    "bench": {"bench", "deploy", "modes", "quant", "reparam"},
    "train": {"train", "data", "models", "modes", "quant", "reparam", "tasks", "deploy", "report", "images"},
}
# What a mode is, without torch: every room may ask.
SAYS_WHAT_MODES_ARE = ("repq_cli.modes.catalogue", "repq_cli.modes.mode.")
HYDRA_ROOMS = {"cli", "schema", "build"}


def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_import_rules(subtests: pytest.Subtests) -> None:
    for path in FILES:
        with subtests.test(path=path.relative_to(PACKAGE).as_posix()):
            check_import_rules(path)


def check_import_rules(path: Path) -> None:
    names = imports(path)
    asked = {name for name in names if name.startswith("repq_cli.") and not name.startswith(SAYS_WHAT_MODES_ARE)}
    ours = {name.split(".")[1] for name in asked}
    if room(path) in ALLOWED:
        assert ours <= ALLOWED[room(path)] | SHARED
    if room(path) in ("reparam", "quant", "tasks"):
        outside = {name.split(".")[0] for name in names} - {"torch", "repq_cli", "__future__"}
        assert outside <= {"collections", "dataclasses", "functools", "math", "typing"}
    if room(path) not in HYDRA_ROOMS:
        assert not {name for name in names if name.split(".")[0] in ("hydra", "omegaconf")}
    if room(path) == "report":
        assert not {name for name in names if name.split(".")[0] == "torch"}


def test_nothing_private_of_torch_and_no_torch_ao() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("torch", "F"):
                private = node.attr.startswith("_") and not node.attr.startswith("__")
                assert not private, f"{path}: torch.{node.attr}"
        assert not {name for name in imports(path) if name.startswith(("torch.ao", "torch._"))}


def test_files_stay_short() -> None:
    long = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in FILES}
    assert {name: lines for name, lines in long.items() if lines > 320} == {}
