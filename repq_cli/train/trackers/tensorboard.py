"""TensorBoard's event files, in the run's folder."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from repq_cli.devices import all_finite, in_float64
from repq_cli.runs.folder import RunFolder

LARGEST_BIN = 1e19  # TensorBoard's bins end a little below 1e20
TELLING = {"rep", "mode", "quant.weight_bits", "final/fp", "final/deployed"}  # the five that HParams shows at first
VALIDATED = "/val_"  # in the names of curves that HParams compares by their last values


def _said_by_tensorboard(hook: Callable[[Any], object]) -> Callable[[Any], object]:
    """The hook for errors in threads, but for those of TensorBoard's, which its next call raises in ours as well."""

    def said(args: Any) -> None:
        if type(args.thread).__name__ != "_AsyncWriterThread":
            hook(args)

    return said


class TensorBoard:
    """Curves, histograms, pictures, and a line of the HParams page."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder.tensorboard
        self._writer: SummaryWriter | None = None
        self._validated: dict[str, float] = {}
        self._hook = threading.excepthook

    def begin(self, step: int) -> None:
        """Later events than those of ``step`` are not shown any more."""
        self._open(purge_step=step + 1)

    def scalars(self, values: dict[str, float], step: int) -> None:
        """One curve each."""
        writer = self._open()
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        self._validated |= {name: value for name, value in values.items() if VALIDATED in name}

    def histograms(self, tensors: dict[str, Tensor], step: int) -> None:
        """Of finite values; those beyond TensorBoard's bins stand in the outermost."""
        writer = self._open()
        for name, tensor in tensors.items():
            values = tensor if all_finite(tensor) else tensor[torch.isfinite(tensor)]
            if values.numel():
                writer.add_histogram(name, in_float64(values).clamp(-LARGEST_BIN, LARGEST_BIN), step)

    def image(self, name: str, picture: Tensor) -> None:
        """A picture without a step."""
        self._open().add_image(f"report/{name}", picture)  # behind the curves, which are sorted by name

    def outcome(self, choices: dict[str, str | float], metrics: dict[str, float], step: int) -> None:
        """A line of the HParams page, where runs are compared and sorted.

        Final metrics stand there as choices do: as curves of a single point they would come before all others.
        Choices have no fixed set of values: that of the first run would hide all others. ``SummaryWriter.add_hparams``
        would make a second run, in a folder of its own.
        """
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
        from torch.utils.tensorboard.summary import hparams

        experiment, start, end = hparams(choices | metrics, self._validated)
        plugin = experiment.value[0].metadata.plugin_data
        data = HParamsPluginData.FromString(plugin.content)
        for info in data.experiment.hparam_infos:
            info.differs = info.name in TELLING
        plugin.content = data.SerializeToString()
        file: Any = self._open()._get_file_writer()
        for summary in (experiment, start, end):
            file.add_summary(summary)

    def close(self) -> None:
        """Flush."""
        if self._writer is not None:
            try:
                self._writer.close()
            finally:
                threading.excepthook = self._hook

    def _open(self, purge_step: int | None = None) -> SummaryWriter:
        if self._writer is None:
            threading.excepthook = _said_by_tensorboard(self._hook)
            self._writer = SummaryWriter(str(self.folder), purge_step=purge_step, max_queue=1000)
        return self._writer
