"""What a stage of training tells of its steps and epochs."""

from __future__ import annotations

from torch import nn

from repq_cli.quant.layers import QuantLayer
from repq_cli.quant.quantizer import step_sizes
from repq_cli.runs.quality import measured
from repq_cli.runs.row import prune
from repq_cli.train.context import Stage
from repq_cli.train.engine import EpochTotals
from repq_cli.train.log import RunLog


class StageLog:
    """Entries of one stage in a run's log; ``metric`` is what scores are of."""

    def __init__(self, stage: Stage, log: RunLog, metric: str) -> None:
        self.stage, self.log, self.metric, self.name = stage, log, metric, stage.name

    def step(self, step: int, epoch: int, loss: float, lr: float) -> None:
        """Of a training step."""
        name = self.name
        self.log.write({"stage": name, "step": step, "epoch": epoch, "loss": loss, "lr": lr})
        self.log.trackers.scalars({f"{name}/loss": loss, f"{name}/lr": lr}, self.stage.offset + step)

    def epoch(self, net: nn.Module, step: int, epoch: int, totals: EpochTotals, score: float, seconds: float) -> None:
        """Of an epoch (from 0) that is done and validated by ``score``."""
        name, log, metric, at = self.name, self.log, self.metric, self.stage.offset + step
        # A score is infinite, and then not logged, where all pictures are identical to their originals.
        entry = prune({"train_loss": totals.mean_loss, f"train_{metric}": totals.mean_score, f"val_{metric}": score})
        steps = step_sizes(net)
        typical = {"step_sizes": {key: size.log().mean().exp().item() for key, size in steps.items()}} if steps else {}
        log.write({"stage": name, "step": step, "epoch": epoch, **entry, **typical})
        means = {f"steps/{key}": size.mean().item() for key, size in steps.items()}
        log.trackers.scalars({f"{name}/{key}": value for key, value in entry.items()} | means, at)
        layers = {key: layer for key, layer in net.named_modules() if isinstance(layer, QuantLayer)}
        weights = {f"weights/{key}": layer.merged_weight() for key, layer in layers.items()}
        per_channel = {f"steps of channels/{key}": size for key, size in steps.items() if size.dim() > 0}
        log.trackers.histograms(weights | per_channel, at)
        epochs = self.stage.options.epochs
        log.epoch_line(
            f"{name.upper():>4} epoch {epoch + 1:>3}/{epochs}  loss {totals.mean_loss:.4f}  "
            f"train {measured(totals.mean_score, metric)}  val {measured(score, metric)}  {seconds:.0f} s",
            last=epoch + 1 == epochs,
        )
