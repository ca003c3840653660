"""One epoch of training, one pass of evaluation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from repq_cli import collective
from repq_cli.answers import mapped, tensors
from repq_cli.data.base import Batch, Evaluation
from repq_cli.data.divided import divided
from repq_cli.devices import in_float64
from repq_cli.modes.unchanging import unchanging
from repq_cli.parts import Part
from repq_cli.precision import in_float32
from repq_cli.quant.latent_weights import bounded_latent_weights, clip_to
from repq_cli.train.arithmetic import Arithmetic
from repq_cli.train.divergence import diverged
from repq_cli.train.options import RuntimeOptions
from repq_cli.train.spread import Spread, Turn
from repq_cli.train.world import ALONE, World

EVAL_BATCH = 256
TIMED_STEPS = 500
FLOAT32 = Arithmetic(RuntimeOptions())
LARGEST_RATE = 1e30  # beyond, torch overflows in an error of its own, where one step is enough to diverge


class Task(Protocol):
    """What a network is trained for; see ``repq_cli.tasks``."""

    name: str
    metric: str
    unit: str
    higher_is_better: bool
    agreement_name: str

    def loss(self, outputs: Any, targets: Tensor) -> Tensor: ...
    def scores(self, outputs: Any, targets: Tensor) -> Tensor: ...
    def agreement(self, outputs: Tensor, reference: Tensor) -> Tensor: ...
    def baselines(self) -> dict[str, nn.Module]: ...
    def set_keys(self, data: str, name: str) -> dict[str, Any]: ...
    def measurements(self, net: Any, split: Any, device: torch.device, tile: int) -> Iterator[dict[str, Tensor]]: ...


@dataclass
class EpochTotals:
    """Sums over the steps of an epoch, so that a resumed epoch ends with the same averages."""

    steps: int = 0
    loss: float = 0.0
    score: float = 0.0
    identical: int = 0  # steps of infinite score

    def add(self, loss: float, score: float) -> None:
        self.steps, self.loss = self.steps + 1, self.loss + loss
        if math.isinf(score):
            self.identical += 1
        else:
            self.score += score

    @property
    def mean_loss(self) -> float:
        """Average loss."""
        return self.loss / max(1, self.steps)

    @property
    def mean_score(self) -> float:
        """Average score, of the steps where it is finite."""
        finite = self.steps - self.identical
        return self.score / finite if finite else math.inf


@dataclass
class StepTimer:
    """Seconds of the latest training steps, and of the waits for their batches."""

    seconds: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)

    def batches(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches; how long each is waited for is noted."""
        start = time.perf_counter()
        for batch in batches:
            self.waits.append(time.perf_counter() - start)
            del self.waits[:-TIMED_STEPS]
            yield batch
            start = time.perf_counter()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Time one step."""
        start = time.perf_counter()
        yield
        self._add(time.perf_counter() - start, 1)

    def steps_since(self, start: float, steps: int) -> None:
        """``steps`` that were begun one after another from ``start`` on and are done now: each took the mean.

        What their batches were waited for stands beside it, but for the first one's, which was there before.
        """
        waited = sum(self.waits[len(self.waits) - (steps - 1) :])
        self._add(time.perf_counter() - start - waited, steps)

    def _add(self, seconds: float, steps: int) -> None:
        self.seconds += [seconds / steps] * steps
        del self.seconds[:-TIMED_STEPS]

    def median_ms(self) -> float | None:
        """The median step in milliseconds."""
        return sorted(self.seconds)[len(self.seconds) // 2] * 1000 if self.seconds else None

    def input_share(self) -> float | None:
        """Of the time of steps and waits, the part that was waited for batches: 0 to 1."""
        whole = sum(self.seconds) + sum(self.waits)
        return round(sum(self.waits) / whole, 4) if whole else None


@dataclass
class Update:
    """How a training step changes ``net``.

    penalty: added to the loss that is minimised, not to the one that is told.
    objective: the loss that is minimised, of the task's own, the outputs and the inputs.
    hint: what may help where a loss is not finite.
    forward: what gives the net's outputs in its place, such as a compiled form of it.
    spread: how the batches that are given are parts of the whole ones, which losses and scores are of.
    asked: whether this process has been asked to stop; ``stops``: whether any rank had been at the latest step.
    bounded: the float weights that are clipped after every update; found once, as it takes a walk over all modules.
    """

    net: nn.Module
    task: Task
    optimizer: torch.optim.Optimizer
    clip_norm: float | None = None
    penalty: Callable[[], Tensor] | None = None
    hint: Callable[[], str] = str
    arithmetic: Arithmetic = FLOAT32
    forward: Callable[[Tensor], Any] | None = None
    objective: Callable[[Tensor, Any, Tensor], Tensor] = lambda loss, outputs, x: loss
    spread: Spread = field(default_factory=Spread)
    world: World = ALONE
    asked: Callable[[], bool] = bool
    stops: bool = False

    def __post_init__(self) -> None:
        self.bounded = bounded_latent_weights(self.net)

    def seen(self, batch: Batch, lr: float) -> tuple[float, float]:
        """One step; loss and mean score. An accelerator is waited for.

        Raises CheckError, with the layer's name, before an update by a loss that is not finite.
        """
        with self.arithmetic.products():
            loss, minimised, score, *asked = self._gradients(batch).tolist()
            if not math.isfinite(minimised):
                raise diverged(self.net, batch, minimised, self.hint(), self.spread.ranks > 1)
            self._move(lr)
        self.stops = any(asked)
        return loss, score

    def unseen(self, batch: Batch, lr: float) -> Tensor:
        """One step that waits for no device: ``[loss, minimised, mean score]``, where the net is.

        Where there are ranks, how many of them are asked to stop stands behind. With a loss that is not finite the
        (fused) optimiser leaves the net as it is.
        """
        with self.arithmetic.products():
            found = self._gradients(batch)
            self._move(lr, ~torch.isfinite(found[1]))
        return found

    def _gradients(self, batch: Batch) -> Tensor:
        """Those of the whole batch, left in the parameters; what ``unseen`` gives."""
        self.optimizer.zero_grad(set_to_none=True)
        found = [self._turn(turn) for turn in self.spread.turns_of(batch)]
        sums = found[0] if len(found) == 1 else torch.stack(found).sum(0)
        if self.spread.ranks > 1:
            sums = self.world.added_up(torch.cat([sums, sums.new_full((1,), float(self.asked()))]))
        loss, minimised, score, finite, *asked = sums
        mean = (score / finite).where(finite > 0, math.inf)  # no look at the values, for which a GPU would have to wait
        return torch.stack([loss, minimised, mean, *asked])

    def _turn(self, turn: Turn) -> Tensor:
        """Forward and backward; the turn's part of the loss and of what is minimised, the sum of scores, their number.

        Infinite scores, the PSNR of identical pictures, would hide all others.
        """
        x, targets = self.arithmetic.images(turn.batch[0]), turn.batch[1]
        with collective.sharing(turn.shared), self._gradients_stay(not turn.last):
            with self.arithmetic.autocast():
                outputs = mapped((self.forward or self.net)(x), in_float32)
            loss = self.task.loss(outputs, targets)
            objective = self.objective(loss, outputs, x)
            penalty = torch.zeros_like(loss) if self.penalty is None else self.penalty()
            minimised = objective if turn.weight == 1 else objective * turn.weight
            if self.penalty is not None:
                minimised = minimised + penalty / self.spread.turns
            self.arithmetic.scaler.scale(minimised).backward()
        scores = self.task.scores(mapped(outputs, torch.detach), targets)
        finite = ~scores.isposinf()
        # One tensor for all, so that a GPU is waited for once.
        parts = (loss * turn.share, (objective + penalty) * turn.share, scores.where(finite, 0.0).sum(), finite.sum())
        return torch.stack([part.detach().float() for part in parts])

    def _gradients_stay(self, stay: bool) -> AbstractContextManager[object]:
        """Inside, gradients are added to those that are there, and no other rank hears of them."""
        parallel = self.forward if isinstance(self.forward, DistributedDataParallel) else None
        return parallel.no_sync() if stay and parallel is not None else nullcontext()

    def _move(self, lr: float, left_out: Tensor | None = None) -> None:
        """One step of the optimiser."""
        optimizer, scaler = self.optimizer, self.arithmetic.scaler
        for group in optimizer.param_groups:
            group["lr"] = min(lr * group.get("lr_factor", 1.0), LARGEST_RATE)
        if self.clip_norm is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(self.net.parameters(), self.clip_norm)
        # What fused optimisers look at; a scaler, by the gradients, says so itself.
        optimizer.found_inf = None if left_out is None else left_out.float()  # type: ignore[attr-defined]
        scaler.step(optimizer)
        scaler.update()
        clip_to(self.bounded)


def training_step(
    net: nn.Module,
    batch: Batch,
    task: Task,
    optimizer: torch.optim.Optimizer,
    lr: float,
    clip_norm: float | None,
    penalty: Callable[[], Tensor] | None = None,
    arithmetic: Arithmetic = FLOAT32,
) -> tuple[float, float]:
    """A single step, by an ``Update`` of its own."""
    return Update(net, task, optimizer, clip_norm, penalty, arithmetic=arithmetic).seen(batch, lr)


def mean_score(scores: Tensor) -> Tensor:
    """The mean without infinite ones, the PSNR of identical pictures, which would hide all others; infinite if all are.

    >>> mean_score(torch.tensor([30.0, math.inf, 34.0])).item(), mean_score(torch.tensor([math.inf])).item()
    (32.0, inf)
    """
    finite = ~scores.isposinf()
    mean = scores.where(finite, 0.0).sum() / finite.sum()
    return mean.where(finite.any(), math.inf)  # no look at the values, for which a GPU would have to be waited


@torch.no_grad()
def evaluate(net: nn.Module, split: Evaluation, task: Task, device: torch.device, world: World = ALONE) -> float:
    """The task's metric over a whole split, in eval mode; NaN if an output is not finite.

    Of several ranks each takes every n-th image, and all know all scores.
    """
    own = divided(split, Part(world.rank, world.size))
    was_training = net.training
    net.eval()
    scores = []
    with unchanging(net):
        for x, targets in own.batches(EVAL_BATCH, device):
            outputs = net(x)
            finite = torch.stack([torch.isfinite(tensor).all() for tensor in tensors(outputs)]).all()
            scores.append(torch.where(finite, task.scores(outputs, targets), torch.nan))
    net.train(was_training)
    found = torch.cat(scores) if scores else torch.zeros(0, device=device)  # more ranks than images
    if world.size > 1:
        found = world.gathered(found, len(split))
    return mean_score(in_float64(found)).item()
