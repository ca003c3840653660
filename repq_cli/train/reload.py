"""The networks of a run that is done, from its folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from repq_cli.config import Config
from repq_cli.errors import DataError
from repq_cli.modes.compose import compose
from repq_cli.reparam.block import merge_first
from repq_cli.runs.folder import RunFolder
from repq_cli.train import checkpoint

SIDE = 64  # pixels: of the empty images by which a network is brought into shape before its weights are loaded


def trained_nets(
    folder: RunFolder, config: Config, make_net: Callable[[], nn.Module], channels: int
) -> dict[str, nn.Module]:
    """The FP net and, as ``fake``, the quantization-aware one, both in eval mode on the CPU.

    ``channels``: of the input images.
    """
    mode = config.mode
    fp = make_net()
    _load(fp, folder.fp, "fp")
    merge_first(fp, config.fp.merged_training is True)
    fake = compose(mode.rule.shaped_net(fp, [torch.zeros(2, channels, SIDE, SIDE)], mode), mode, config.quant)
    _load(fake, folder.best, "qat")
    return {"fp": fp.eval(), "fake": fake.eval()}


def _load(net: nn.Module, path: Path, stage: str) -> None:
    content = checkpoint.load(path)
    if content.get("stage", stage) != stage:
        raise DataError(f"{path} holds a net of {content['stage'].upper()}: put back the one that belongs there.")
    try:
        net.load_state_dict(content["net"])
    except (RuntimeError, KeyError) as error:
        raise DataError(f"{path} is not of the network that config.yaml beside it describes: {error}.") from error
