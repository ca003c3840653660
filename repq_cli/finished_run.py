"""A run that is done, from its folder: its networks, data and task, whatever a command needs of them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from repq_cli import build
from repq_cli.config import Config
from repq_cli.data.base import Evaluation, Info, Inputs, Split
from repq_cli.deploy.network import DeployedNet
from repq_cli.errors import ConfigError, DataError
from repq_cli.images.listing import some
from repq_cli.runs.folder import ROW, RunFolder
from repq_cli.runs.networks import foreign_network
from repq_cli.runs.row import Row
from repq_cli.runs.sweep import SweepFolder
from repq_cli.text import command
from repq_cli.train.reload import trained_nets

# What commands read in a row without asking whether it is there.
ROW_KINDS = {"model": str, "rep": str, "mode": str, "task": str, "metrics": list, "metric": dict, "quant": dict}
ROW_PARTS = {"metric": ("name", "split"), "quant": ("weight_bits", "act_bits")}


class FinishedRun:
    """A run that is done. Its files are read when they are asked for, and once."""

    def __init__(self, path: str | Path, plugins: Sequence[str] = ()) -> None:
        """Read the row. Raises DataError where there is no run, or one that is not done.

        plugins: whose code the running command line allows the run's configuration to name.
        """
        if not str(path):
            raise ConfigError("run= names nothing: name the folder of a run that is done.")
        self.folder, self.plugins = RunFolder(path), plugins
        self.row = _row_of_finished(self.folder)

    def __str__(self) -> str:
        return f"{self.folder}: {self.what}"

    @property
    def what(self) -> str:
        """What ran."""
        return f"{self.row['model']}, rep {self.row['rep']}, mode {self.row['mode']}"

    @functools.cached_property
    def config(self) -> Config:
        """The configuration; of an earlier version with what it did where it lacks a key."""
        return build.stored(self.folder, self.plugins)

    @functools.cached_property
    def deployed(self) -> DeployedNet:
        """The network that ships. Raises DataError where it is damaged, or not the one that the row tells of."""
        net = DeployedNet.load(self.folder.deploy)
        self._require_own("deploy")
        return net

    @property
    def inputs(self) -> Inputs:
        """What the networks read, without a look at the data."""
        graph = self.deployed.graph
        return Inputs(self.config.data.name, tuple(graph["input_shape"]), len(graph.get("classes", ())))

    def trained(self, inputs: Inputs | Info) -> dict[str, nn.Module]:
        """The FP net (``fp``) and the quantization-aware one (``fake``), both in eval mode on the CPU."""
        self._require_own("fp", "best")
        return trained_nets(self.folder, self.config, build.network_maker(self.config, inputs), inputs.shape[0])

    def _require_own(self, *names: str) -> None:
        foreign = foreign_network(self.folder, self.row, *names)
        if foreign is not None:
            raise DataError(f"{foreign} Put its own there, or go on by {command('train', f'resume={self.folder}')}.")

    def tests(self, config: Config) -> dict[str, Evaluation]:
        """The evaluation sets of a configuration, such as the run's own, as its networks read them."""
        return {name: fitting(name, split, self.deployed) for name, split in build.data_tests(config).items()}


def _row_of_finished(folder: RunFolder) -> Row:
    row = folder.read_row() if folder.path.is_dir() else None
    if not isinstance(row, dict) and SweepFolder(folder.path).is_used:
        raise DataError(f"run={folder} is a sweep: name one of its runs, such as run={folder.path / '0'}.")
    if not isinstance(row, dict):
        raise DataError(f"run={folder} is no run folder: it holds no {ROW}; name one below outputs/.")
    if row.get("status") != "done":
        raise DataError(
            f"run={folder} is not done (status {row.get('status')}): go on with it by "
            f"{command('train', f'resume={folder}')}."
        )
    whole = all(isinstance(row.get(key), kind) for key, kind in ROW_KINDS.items())
    whole = whole and all(isinstance(metric, dict) for metric in row["metrics"])
    if not whole or not all(key in row[section] for section, keys in ROW_PARTS.items() for key in keys):
        raise DataError(f"{folder.row_file} lacks what every row has: restore it, or train the run again.")
    return row


def fitting(name: str, split: Evaluation, net: DeployedNet) -> Evaluation:
    """The set as this network reads it: in its colours, and normalised as its training images were.

    A set of some of the classes is labelled by their names, one of as many others in their order. DataError where it
    cannot be read.
    """
    if not isinstance(split, Split):
        return split
    shape, classes = tuple(net.graph["input_shape"]), tuple(net.graph["classes"])
    if split.info.shape[1:] != shape[1:]:
        raise DataError(
            f"The images of {split.info.name}/{name} are {_size(split.info.shape)} and the network was trained on "
            f"{_size(shape)}: scale them (data.size), or choose other data."
        )
    if split.info.shape != shape:
        split = split.in_channels(shape[0])
    if set(split.info.classes) < set(classes):
        missing = [name for name in classes if name not in split.info.classes]
        print(f"{split.info.name}/{name} has no images of the network's classes {some(missing)}.")
    elif len(split.info.classes) != len(classes):
        raise DataError(
            f"{split.info.name} has {len(split.info.classes)} classes and the network was trained on {len(classes)}: "
            f"choose data with the same classes."
        )
    elif set(split.info.classes) != set(classes):
        print(f"The classes of {split.info.name} have other names than those of training; they are taken in order.")
        return split.normalised_by(net.graph["mean"], net.graph["std"])
    return split.labelled_as(classes).normalised_by(net.graph["mean"], net.graph["std"])


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
