"""The networks of a run that is done, from its folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from repq_cli.deploy.network import DeployedNet
from repq_cli.errors import DataError
from repq_cli.modes.compose import compose
from repq_cli.modes.options import ModeOptions
from repq_cli.quant.options import QuantOptions
from repq_cli.reparam.block import merge_first
from repq_cli.report.row import Row, read_row
from repq_cli.train import checkpoint
from repq_cli.train.checkpoint import RunCheckpoints

SIDE = 64  # pixels: of the empty images by which a network is brought into shape before its weights are loaded


def finished_row(folder: Path) -> Row:
    """The row of a run that is done; DataError of any other."""
    row = read_row(folder) if folder.is_dir() else None
    if not isinstance(row, dict):
        raise DataError(f"run={folder} is no run folder: it holds no summary.json; name one below outputs/.")
    if row.get("status") != "done":
        raise DataError(
            f"run={folder} is not done (status {row.get('status')}): go on with it by repq train resume={folder}."
        )
    kinds = {"model": str, "rep": str, "mode": str, "task": str, "metrics": list, "metric": dict, "quant": dict}
    parts = {"metric": ("name", "split"), "quant": ("weight_bits", "act_bits")}
    whole = all(isinstance(row.get(key), kind) for key, kind in kinds.items())
    if not whole or not all(key in row[section] for section, keys in parts.items() for key in keys):
        raise DataError(f"{folder}/summary.json lacks what every row has: restore it, or train the run again.")
    return row


def deployed_net(folder: Path) -> DeployedNet:
    """The network that ships."""
    return DeployedNet.load(folder / "deploy")


def trained_nets(
    folder: Path, config: dict[str, Any], make_net: Callable[[], nn.Module], channels: int
) -> dict[str, nn.Module]:
    """The FP net and, as ``fake``, the quantization-aware one, both in eval mode on the CPU.

    ``channels``: of the input images.
    """
    files = RunCheckpoints(folder)
    mode, quant = ModeOptions(**config["mode"]), QuantOptions(**config["quant"])
    fp = make_net()
    _load(fp, files.fp)
    merge_first(fp, config["fp"]["merged_training"] is True)
    fake = compose(mode.rule.shaped_net(fp, [torch.zeros(2, channels, SIDE, SIDE)], mode), mode, quant)
    _load(fake, files.best)
    return {"fp": fp.eval(), "fake": fake.eval()}


def _load(net: nn.Module, path: Path) -> None:
    try:
        net.load_state_dict(checkpoint.load(path)["net"])
    except (RuntimeError, KeyError) as error:
        raise DataError(f"{path} is not of the network that config.yaml beside it describes: {error}.") from error
