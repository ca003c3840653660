"""Which networks a row's numbers were measured on: those of its folder, known by the digests that their files carry."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from repq_cli.files import parsed_json, read_regular
from repq_cli.runs.folder import RunFolder
from repq_cli.runs.row import Row
from repq_cli.sealed import seal_of

DIGITS = 16
DEPLOYED = "model.json"  # of deploy.network, which needs torch


def network_digests(folder: RunFolder) -> dict[str, str]:
    """Of the FP net, the quantization-aware one and the deployed one, as far as they are there and have one."""
    return {name: digits for name, digits in _found(folder).items() if digits}


def _found(folder: RunFolder) -> dict[str, str]:
    """The same; empty where a file has none."""
    readers: dict[str, tuple[Path, Callable[[Path], str | None]]] = {
        "fp": (folder.fp, seal_of),
        "best": (folder.best, seal_of),
        "deploy": (folder.deploy / DEPLOYED, _of_deployed),
    }
    found = {}
    for name, (path, digest) in readers.items():
        try:
            found[name] = str(digest(path) or "")[:DIGITS]
        except (OSError, ValueError):
            continue  # whoever reads it says what is wrong with it
    return found


def foreign_network(folder: RunFolder, row: Row, *names: str) -> str | None:
    """A sentence about the first network of ``names`` that is not the one that the row tells of; None where all are.

    A file that somebody copied from another run is whole, and what it measures would stand for this one. Rows of
    earlier versions tell of none.
    """
    lineage = row.get("lineage")
    told = lineage.get("networks") if isinstance(lineage, dict) else None
    found = _found(folder)
    for name in names:
        if isinstance(told, dict) and name in found and told.get(name, found[name]) != found[name]:
            path = {"fp": folder.fp, "best": folder.best}.get(name, folder.deploy)
            return f"{path} is another network than {folder.row_file} tells of (lineage.networks.{name})."
    return None


def _of_deployed(path: Path) -> str | None:
    digest = parsed_json(read_regular(path)).get("sha256")
    return digest if isinstance(digest, str) else None
