"""The sections of the configuration that describe training. No torch here.

A key without a default has none but in ``configs/``, where each option of a group has its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal, TypeVar

from repq_cli.bounds import Range
from repq_cli.effects import Affects

WeightFormat = Literal[
    "auto",
    "repq",
    "torchvision",
    "timm",
    "repvgg_official",
    "qarepvgg_official",
    "acnet_official",
    "orepa_official",
    "ecbsr_official",
]

TrackerName = Literal["csv", "mlflow", "wandb"]
S = TypeVar("S", bound="StageOptions")


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How long and how fast a stage trains: all that QAT has.

    epochs: passes over the training split; 0 skips training (QAT: calibration only).
    lr: the peak learning rate.
    patience: epochs without a better validation score after which the stage ends; its best net is kept as always.
    """

    epochs: Annotated[int, Range(0)]
    patience: Annotated[int, Range(1)] | None = None
    lr: Annotated[float, Range(0, None, open_low=True)]


@dataclass(frozen=True)
class WeightOptions:
    """Weights of a file that replace a stage. They affect what follows; where they lie says nothing of what they are.

    checkpoint: a run folder, a checkpoint, or a published state dict; null: the stage is trained.
    format: the layout of that file; ``auto`` takes the one that explains most of its keys.
    weights: of a file with averaged (EMA) weights beside the plain ones; ``auto``: the averaged ones, where they are
        whole, as projects evaluate and publish those.
    head: ``new``: the body of that file under a fresh classifier, for other classes or where it has none.
    input: ``sum``: kernels for three colours are summed over them for grey images.
    """

    checkpoint: Annotated[str | None, Affects.PLACE] = None
    format: Annotated[WeightFormat, Affects.PLACE] = "auto"
    weights: Annotated[Literal["auto", "ema", "plain"], Affects.QAT] = "auto"
    head: Annotated[Literal["same", "new"], Affects.QAT] = "same"
    input: Annotated[Literal["same", "sum"], Affects.QAT] = "same"


@dataclass(frozen=True, kw_only=True)
class StageOptions(WeightOptions, TrainingOptions):
    """One stage: trained, or (FP only) taken from a file.

    merged_training: (FP only) blocks compute their merged kernel and convolve once, instead of branch by branch, with
        the same outputs and gradients; ``auto``: where they have no batch norm, which depends on each branch's outputs.
    reuse: (FP only) take the stage from ``outputs/cache/fp`` if it was trained before, and keep it there otherwise.
    """

    merged_training: Literal["auto", True, False] = "auto"
    reuse: Annotated[bool, Affects.NOTHING] = True

    def has_waited_enough(self, epochs: int, better_epoch: int) -> bool:
        """Whether after ``epochs`` the last with a better score, ``better_epoch`` from 0, is ``patience`` ago.

        >>> options = StageOptions(epochs=40, lr=0.1, patience=3)
        >>> options.has_waited_enough(8, 4), options.has_waited_enough(8, 5)
        (True, False)
        """
        return self.patience is not None and epochs - 1 - better_epoch >= self.patience

    def tried(self: S) -> S:
        """The stage in a trial: an epoch at most, which is shared with no other run."""
        return replace(self, epochs=min(1, self.epochs), reuse=False)


@dataclass(frozen=True, kw_only=True)
class QATOptions(StageOptions):
    """The QAT stage, with tools that are no part of the paper's recipe: off unless asked for, or where ``mode=auto``.

    freeze_steps_at: the fraction of the stage's training steps after which the steps of quantizers stay as they are.
    steps_within: a factor r; at the end of each epoch a weight step outside ``[s / r, s r]`` starts anew at the step
        ``s`` of least squared error for the merged kernel as it is. ``auto``: see ``resolve_steps_within``.
    reestimate_bn: training batches from which running statistics are taken anew when training is over.
    teacher: ``fp``: the loss is ``(1 - alpha) CE + alpha T^2 KL(softmax(t / T) || softmax(s / T))`` with the logits t
        of the FP net and s of the quantized one; alpha is ``distill_weight`` and T ``temperature``.
    """

    freeze_steps_at: Annotated[float, Range(0, 1)] | None = None
    steps_within: Annotated[float, Range(1, None, open_low=True)] | Literal["auto"] | None = "auto"
    reestimate_bn: Annotated[int, Range(0)] = 0
    teacher: Literal["fp"] | None = None
    distill_weight: Annotated[float, Range(0, 1)] = 0.5
    temperature: Annotated[float, Range(0, None, open_low=True)] = 2.0


@dataclass(frozen=True, kw_only=True)
class OptimOptions:
    """The optimiser of both stages. Weight decay falls on kernels, on batch norm and biases by name, never on steps.

    decay_also: patterns (``*`` for anything) of the names of other parameters that decay, as papers have it.
    bias_lr: the learning rate of biases, batch norms' included, as a multiple of the others'.
    step_lr: that of the steps of quantizers. To a rate of SGD's a scale of their gradients is the same.
    custom_l2: RepVGG's own penalty in place of its kernels' weight decay; it makes them hard to quantize.
    """

    name: Literal["sgd", "adamw"]
    momentum: Annotated[float, Range(0, 1)] = 0.9
    nesterov: bool = True
    betas: tuple[Annotated[float, Range(0, 1, open_high=True)], Annotated[float, Range(0, 1, open_high=True)]] = (
        0.9,
        0.999,
    )
    weight_decay: Annotated[float, Range(0)]
    decay_also: list[str] = field(default_factory=list)
    bias_lr: Annotated[float, Range(0)] = 1.0
    step_lr: Annotated[float, Range(0), Affects.QAT] = 1.0
    custom_l2: bool = False
    label_smoothing: Annotated[float, Range(0, 1)]
    clip_norm: Annotated[float, Range(0, None, open_low=True)] | None = None


@dataclass(frozen=True)
class ScheduleOptions:
    """The learning rate: linear warm-up, then ``cosine`` to ``final_lr`` times the peak, or ``constant``.

    lr_for_batch: the batch size that the rates of both stages are meant for: they are multiplied by ``data.batch_size``
        over it (arXiv 1706.02677, section 2.1); null: they are what they are, however many processes share a batch.
    """

    name: Literal["cosine", "constant"]
    warmup_epochs: Annotated[float, Range(0)]
    final_lr: Annotated[float, Range(0, 1)] = 0.0
    lr_for_batch: Annotated[int, Range(1)] | None = None


@dataclass(frozen=True)
class RuntimeOptions:
    """How a run is carried out: two keys say how accurately its training steps compute, all others change no result.

    (Up to the device's arithmetic.)

    device: ``auto`` takes an accelerator if there is one. threads: null leaves torch's choice.
    precision: of the convolutions and products of training steps (autocast); merging, folding, statistics and
        quantizers compute in float32, and so does everything but training. fp16 scales the loss and needs CUDA.
    matmul: of float32's own products in training steps: ``highest`` (float32) or ``high`` (TF32, which needs CUDA).
    channels_last: whether training keeps the channels of a pixel side by side; ``auto``: on CPUs and CUDA. Sums get
        another order, and nothing else changes.
    compile: whether torch's compiler makes the training steps; the first of each stage then takes a minute or so. Sums
        get another order, as on another device, and nothing else changes.
    log_every: training steps between two entries of metrics.jsonl and TensorBoard.
    trackers: where the same numbers go beside metrics.jsonl and TensorBoard: ``csv`` (metrics.csv), ``mlflow``,
        ``wandb`` (both below outputs/, offline). One that fails is left out with a warning.
    tile: (super-resolution) pictures of more low-resolution pixels a side are run in tiles; results do not change.
    changed_data: whether a run, or a sweep, goes on with data that is not what it was; its row then says so.
    devices: processes that train together, each on a device of its own; they share every batch.
    accumulate: turns in which a process computes its part of a batch, so that less memory is needed; batch norm then
        has the statistics of a turn's images, of all processes'.
    sync_stats: ``auto``: batch norm sees the images of all processes; false: each process' own, and running statistics
        are averaged over processes after each epoch, so that results depend on their number.
    rank_timeout: seconds that processes wait for each other before the run ends.
    restarts: how often all processes of ``devices`` are started again, to go on from the last checkpoint, after one of
        them has failed.
    checkpoint_steps: training steps between checkpoints inside an epoch; null: there are none but at its end.
    """

    device: Annotated[str, Affects.NOTHING] = "auto"
    threads: Annotated[Annotated[int, Range(1, 1024)] | None, Affects.NOTHING] = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    matmul: Literal["highest", "high"] = "highest"
    channels_last: Annotated[Literal["auto", True, False], Affects.NOTHING] = "auto"
    compile: Annotated[bool, Affects.NOTHING] = False
    log_every: Annotated[int, Range(1), Affects.NOTHING] = 10
    tensorboard: Annotated[bool, Affects.NOTHING] = True
    trackers: Annotated[list[TrackerName], Affects.NOTHING] = field(default_factory=list)
    tile: Annotated[int, Range(64), Affects.NOTHING] = 1024
    changed_data: Annotated[Literal["refuse", "accept"], Affects.NOTHING] = "refuse"
    devices: Annotated[Annotated[int, Range(1, 1024)], Affects.NOTHING] = 1
    accumulate: Annotated[int, Range(1)] = 1
    sync_stats: Literal["auto", False] = "auto"
    rank_timeout: Annotated[Annotated[int, Range(1)], Affects.NOTHING] = 60
    restarts: Annotated[Annotated[int, Range(0)], Affects.NOTHING] = 0
    checkpoint_steps: Annotated[Annotated[int, Range(1)] | None, Affects.NOTHING] = None

    def is_checkpoint(self, step: int) -> bool:
        """Whether one is made after so many steps of a stage, wherever its epochs end."""
        return self.checkpoint_steps is not None and step % self.checkpoint_steps == 0

    @property
    def all_trackers(self) -> list[str]:
        """Everything that shows the run's numbers elsewhere."""
        return [*(["tensorboard"] if self.tensorboard else []), *dict.fromkeys(self.trackers)]
