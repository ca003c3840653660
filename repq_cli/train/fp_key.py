"""The identity of an FP stage: everything that determines its result.

What moves rounding alone is no part of it: the device, the number of threads or of decoding processes, a
compiler of its steps, the environment.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import sys
from importlib import metadata
from pathlib import Path

from repq_cli.config import Config
from repq_cli.effects import Affects

PACKAGE = Path(__file__).resolve().parents[1]
# ``tests/test_fp_key.py`` holds them against all that training the stage imports.
SOURCES = (
    "answers.py",
    "batch_norm.py",
    "build.py",
    "collective.py",
    "devices.py",
    "graphs",
    "named.py",
    "parts.py",
    "precision.py",
    "seeds.py",
    "shared_norm.py",
    "strided_points.py",
    "reparam",
    "models",
    "data",
    "images",
    "tasks",
    "train/arithmetic.py",
    "train/compiled.py",
    "train/context.py",
    "train/engine.py",
    "train/experiment.py",
    "train/fp_stage.py",
    "train/optim.py",
    "train/parallel.py",
    "train/spread.py",
    "train/stage.py",
    "train/tools.py",
)
# Keys that came later, with the values that change nothing: stages without them are the same.
LATER: dict[str, object] = {
    **dict.fromkeys(("data.randaugment", "data.mixup", "data.cutmix"), 0),
    "runtime.accumulate": 1,
    "runtime.sync_stats": "auto",
    "schedule.lr_for_batch": None,
    **dict.fromkeys(("loss", "score"), None),
}
VERSIONS = ("torch", "torchvision", "numpy", "pillow")  # of what computes, decodes images, and draws crops


def fp_key(config: Config, data_fingerprint: str = "") -> str:
    """A hash of the FP stage's part of a configuration, of the data, and of the sources that carry it out.

    Modes and bits share it, but for modes that use no branches.
    """
    parts = config.selected(Affects.FP) | {"rep": config.used_rep}
    for name, value in LATER.items():
        section, _, key = name.partition(".")
        if not key and parts.get(section) == value:
            parts.pop(section, None)
        elif key and parts.get(section, {}).get(key) == value:
            parts[section] = {other: kept for other, kept in parts[section].items() if other != key}
    packages = [*VERSIONS, *(["timm"] if config.model.name == "timm" else [])]
    versions = [metadata.version(name) for name in packages]
    digest = hashlib.sha256(json.dumps([parts, data_fingerprint, versions], sort_keys=True).encode())
    foreign = [section.target for section in (config.model, config.rep, config.data) if not section.is_ours]
    foreign += [config.model.arguments["target"]] if "target" in config.model.arguments else []  # model=module
    foreign += [target for target in (config.loss, config.score) if target is not None]
    plugins = {*foreign, *config.plugins} if foreign else set()
    for folder, path in (*_own_sources(), *_plugin_sources({name.partition(".")[0] for name in plugins})):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def mixed_key(begun: str, continued: str) -> str:
    """The key of a stage that began as one and goes on as another, with other data or sources: that of neither."""
    return hashlib.sha256(f"{begun}, then {continued}".encode()).hexdigest()[:16]


def _own_sources() -> list[tuple[Path, Path]]:
    found = []
    for name in SOURCES:
        path = PACKAGE / name
        found += [path] if path.is_file() else sorted(path.rglob("*.py"))
    return [(PACKAGE, path) for path in found]


def _plugin_sources(names: set[str]) -> list[tuple[Path, Path]]:
    """Every source of top-level packages and modules, and of those of the user's own that they import.

    Each with the folder that it was found in. Installed packages are not followed: theirs are no experiments.
    """
    found: list[tuple[Path, Path]] = []
    seen: set[str] = set()
    waiting = set(names)
    while waiting:
        name = min(waiting)
        waiting.remove(name)
        seen.add(name)
        for folder, path in _sources_of(name):
            found.append((folder, path))
            waiting |= {other for other in _imports(path) if other not in seen and _is_users(other)}
    return found


def _sources_of(name: str) -> list[tuple[Path, Path]]:
    """The folder of a top-level package or module, with each of its sources."""
    found = []
    for place in _places(name):
        sources = sorted(place.rglob("*.py")) if place.is_dir() else [place] if place.suffix == ".py" else []
        found += [(place.parent, path) for path in sources]
    return found


def _places(name: str) -> list[Path]:
    """The folders of a top-level package, or the file of a module; none where it is not to be found."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        return []
    return [Path(place) for place in spec.submodule_search_locations or [spec.origin or ""]]


def _imports(path: Path) -> set[str]:
    """The top-level names that a source imports, anywhere in it; none of a file that is no Python of today."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return set()
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
    return found


def _is_users(name: str) -> bool:
    """Whether a top-level module is neither ours, nor Python's, nor an installed package's."""
    if name in {"repq_cli", "__main__", *sys.stdlib_module_names}:
        return False
    places = _places(name)
    return bool(places) and not any({"site-packages", "dist-packages"} & set(place.parts) for place in places)
