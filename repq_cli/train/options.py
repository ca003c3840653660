"""The sections of the configuration that describe training. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from repq_cli.bounds import Range


@dataclass(frozen=True)
class StageOptions:
    """One stage of training.

    epochs: passes over the training split; 0 skips training (QAT: calibration only).
    lr: the peak learning rate.
    checkpoint: (FP only) a run folder or checkpoint whose FP weights replace this stage.
    """

    epochs: Annotated[int, Range(0)] = 10
    lr: Annotated[float, Range(0, None, open_low=True)] = 0.1
    checkpoint: str | None = None


@dataclass(frozen=True)
class OptimOptions:
    """The optimiser of both stages. Weight decay falls on kernels only: never on batch norm, biases or steps."""

    name: Literal["sgd", "adamw"] = "sgd"
    momentum: Annotated[float, Range(0, 1)] = 0.9
    nesterov: bool = True
    betas: tuple[Annotated[float, Range(0, 1, open_high=True)], Annotated[float, Range(0, 1, open_high=True)]] = (
        0.9,
        0.999,
    )
    weight_decay: Annotated[float, Range(0)] = 1e-4
    label_smoothing: Annotated[float, Range(0, 1)] = 0.0
    clip_norm: Annotated[float, Range(0, None, open_low=True)] | None = None


@dataclass(frozen=True)
class ScheduleOptions:
    """The learning rate: linear warm-up, then ``cosine`` to ``final_lr`` times the peak, or ``constant``."""

    name: Literal["cosine", "constant"] = "cosine"
    warmup_epochs: Annotated[float, Range(0)] = 0.0
    final_lr: Annotated[float, Range(0, 1)] = 0.0


@dataclass(frozen=True)
class RuntimeOptions:
    """What changes how a run is carried out but not what it computes (up to the device's arithmetic).

    device: ``auto`` takes an accelerator if there is one. threads: null leaves torch's choice.
    log_every: training steps between two entries of metrics.jsonl and TensorBoard.
    """

    device: str = "auto"
    threads: Annotated[int, Range(1, 1024)] | None = None
    log_every: Annotated[int, Range(1)] = 10
    tensorboard: bool = True
