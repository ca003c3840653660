"""One stage of training: epochs, validation, checkpoints, logs; resumable at any step."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from repq_cli.data.base import Batch
from repq_cli.data.divided import divided
from repq_cli.devices import all_finite, is_waited_for
from repq_cli.errors import CheckError, Interrupted
from repq_cli.modes.calibrate import sees_nothing
from repq_cli.parts import Part
from repq_cli.quant.frozen_layers import frozen_layers
from repq_cli.reparam.repvgg import custom_l2, repvgg_blocks
from repq_cli.seeds import derive_seed
from repq_cli.train import checkpoint
from repq_cli.train.arithmetic import Arithmetic
from repq_cli.train.compiled import CompiledForward
from repq_cli.train.context import RunContext, Stage
from repq_cli.train.divergence import advice, diverged, require_usable_images
from repq_cli.train.engine import EVAL_BATCH, EpochTotals, StepTimer, Update, evaluate
from repq_cli.train.log import logger
from repq_cli.train.mending import fitting, keep_best
from repq_cli.train.optim import learning_rate, leaves_out_steps, make_optimizer
from repq_cli.train.parallel import average_buffers, in_parallel
from repq_cli.train.spread import Divided, Spread
from repq_cli.train.stage_log import StageLog


class StageTrainer:
    """Trains ``net`` for one stage and ends with its best weights by validation."""

    def __init__(self, stage: Stage, net: nn.Module, context: RunContext, earlier: dict[str, float | None]) -> None:
        """``earlier`` are the times of the stages before."""
        self.stage, self.net, self.context, self.earlier = stage, net, context, earlier
        self.experiment, self.log = context.experiment, context.log
        self.told = StageLog(stage, context.log, self.experiment.task.metric)
        self.arithmetic = Arithmetic(self.experiment.runtime, context.device)
        self.arithmetic.lay_out(net, training=True)
        optim, runtime = self.experiment.optim, self.experiment.runtime
        meant_for = self.experiment.schedule.lr_for_batch or self.experiment.batch_size
        self.peak = stage.options.lr * (self.experiment.batch_size / meant_for)
        self.optimizer = make_optimizer(net, optim, self.peak, stage.steps_apart)
        world = self.world = context.world
        part = Part(world.rank, world.size, runtime.accumulate)
        self.split = divided(self.experiment.data.train, part)
        forward = CompiledForward(net, stage.name) if runtime.compile else None
        self.update = Update(
            net,
            self.experiment.task,
            self.optimizer,
            optim.clip_norm,
            partial(custom_l2, net, optim.weight_decay) if optim.custom_l2 and repvgg_blocks(net) else None,
            self._advice,
            self.arithmetic,
            in_parallel(net, forward, context.device) if world.size > 1 else forward,
            stage.tools.objective,
            Spread() if part.is_whole else Divided(part, self.experiment.batch_size, runtime.sync_stats == "auto"),
            world,
            lambda: bool(context.stop),
        )
        self.unseen: list[Tensor] = []  # what steps since the last look have found
        self.last_look = time.perf_counter()
        self.steps_per_epoch = self.experiment.data.train.steps(self.experiment.batch_size)
        self.steps = self.steps_per_epoch * stage.options.epochs
        self.epoch = 0
        self.totals = EpochTotals()
        self.best_score: float | None = None
        self.best_epoch = 0
        self.better_epoch = 0  # the last with a better score; of equals the best is a later one
        self.seconds = 0.0
        self.timer = StepTimer()

    @property
    def step(self) -> int:
        """Training steps done in this stage."""
        return self.epoch * self.steps_per_epoch + self.steps_in_epoch

    @property
    def steps_in_epoch(self) -> int:
        """Training steps done in this epoch."""
        return self.totals.steps + len(self.unseen)

    @property
    def is_over(self) -> bool:
        """Whether every epoch is done, or the stage's patience is at its end."""
        options = self.stage.options
        enough = options.has_waited_enough(self.epoch, self.better_epoch)
        return self.epoch >= options.epochs or (enough and self.steps_in_epoch == 0)

    @property
    def global_step(self) -> int:
        """Training steps done in the run."""
        return self.stage.offset + self.step

    def restore(self, saved: dict[str, Any]) -> None:
        """Go on from ``saved``, the content of last.pt."""
        self.net.load_state_dict(saved["net"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.arithmetic.restore(saved.get("scaler", {}))
        self.epoch, self.totals = saved["epoch"], EpochTotals(**saved["totals"])
        self.best_score, self.best_epoch = saved["best_score"], saved["best_epoch"]
        self.better_epoch = saved.get("better_epoch", self.best_epoch)
        self.seconds, self.timer.seconds = saved["seconds"], list(saved["step_seconds"])
        self.timer.waits = list(saved.get("input_seconds", []))
        self.log.rewind(saved["metrics_bytes"], self.global_step, saved.get("metrics_sha256"))
        if self.world.leads:
            keep_best(self.stage, self.context, saved, self.net)

    def fit(self) -> None:
        """Train to the end, then load the best weights. Raises Interrupted, after a checkpoint, if asked to stop."""
        before, started = self.seconds, time.perf_counter()
        self.net.train()
        bar = tqdm(
            total=self.steps,
            initial=self.step,
            desc=self.stage.name.upper(),
            unit="step",
            leave=False,
            disable=not self.log.show_bar,
            dynamic_ncols=True,
        )
        with bar:
            while not self.is_over:
                self.stage.on_epoch(self.epoch)
                self._train_epoch(bar, lambda: before + time.perf_counter() - started)
                self.seconds = before + time.perf_counter() - started
                self._end_epoch(bar)
        if self.epoch < self.stage.options.epochs:
            logger.info(
                "%s ends after %d of %d epochs: none since epoch %d has a better validation score.",
                *(self.stage.name.upper(), self.epoch, self.stage.options.epochs, self.better_epoch + 1),
            )
        if self.best_score is None:
            if self.steps:
                raise CheckError(
                    f"After no epoch of {self.stage.name.upper()} were all outputs for the validation images finite. "
                    f"{self._advice()}"
                )
            self._save_best(None, 0)  # nothing was trained: what calibration gave is what there is
        elif self.world.leads and self.best_epoch < self.epoch - 1:  # of the last epoch the net is itself
            self.net.load_state_dict(checkpoint.load(self.stage.best)["net"])
        self.world.take_over(self.net)
        self.optimizer.zero_grad()  # which is no longer of use
        self.arithmetic.lay_out(self.net, training=False)
        if self.stage.tools.finish():
            self._save_best(self.best_score, self.best_epoch)

    def _train_epoch(self, bar: Any, elapsed: Callable[[], float]) -> None:
        experiment, options = self.experiment, self.stage.options
        seed = derive_seed(experiment.seed, self.stage.name, self.epoch)
        for batch in self.timer.batches(self._batches(self.totals.steps)):
            lr = learning_rate(experiment.schedule, self.peak, self.step, self.steps, self.steps_per_epoch)
            # Quantizers may draw at random: from a state that a resumed run finds again.
            torch.manual_seed(derive_seed(seed, "step", self.steps_in_epoch))
            self.stage.tools.begin_step(self.optimizer, self.step / self.steps)
            known = self._take(batch, lr)
            if known and self.step % experiment.runtime.log_every == 0:
                self.told.step(self.step, self.epoch, known[-1], lr)
            bar.update(len(known))
            bar.set_postfix_str(f"epoch {self.epoch + 1}/{options.epochs}, loss {self.totals.mean_loss:.3f}")
            stops = self.update.stops if self.world.size > 1 else bool(self.context.stop)
            inside = self.steps_in_epoch < self.steps_per_epoch
            if stops or (inside and experiment.runtime.is_checkpoint(self.step)):
                self._look()
                self.seconds = elapsed()
                self._save_last()
            if stops:
                self._end()

    def _take(self, batch: Batch, lr: float) -> list[float]:
        """One step; the losses that are known after it.

        On a CPU its own. An accelerator is waited for where losses are logged, and at the end of the epoch.
        """
        if not (is_waited_for(self.context.device) and leaves_out_steps(self.optimizer)):
            with self.timer.step():
                loss, score = self.update.seen(batch, lr)
            self.totals.add(loss, score)
            return [loss]
        if not self.unseen:
            self.last_look = time.perf_counter()
        self.unseen.append(self.update.unseen(batch, lr))
        due = self.step % self.experiment.runtime.log_every == 0 or self.steps_in_epoch == self.steps_per_epoch
        return self._look() if due else []

    def _look(self) -> list[float]:
        """The losses of the steps since the last look. Raises CheckError for the first that is not finite."""
        if not self.unseen:
            return []
        found = torch.stack(self.unseen).tolist()
        self.timer.steps_since(self.last_look, len(found))
        self.unseen.clear()
        self.update.stops = any(sum(asked) for _, _, _, *asked in found)
        for loss, minimised, score, *_ in found:
            if not math.isfinite(minimised):
                batch = next(self._batches(self.totals.steps))  # the step's own; the net has not changed since
                raise diverged(self.net, batch, minimised, self._advice(), self.world.size > 1)
            self.totals.add(loss, score)
        return [loss for loss, *_ in found]

    def _batches(self, start: int = 0) -> Iterator[Batch]:
        """Those of this epoch, from ``start`` on."""
        experiment, seed = self.experiment, derive_seed(self.experiment.seed, self.stage.name, self.epoch)
        batches: Iterator[Batch] = self.split.training_batches(experiment.batch_size, seed, start, self.context.device)
        return batches

    def _end_epoch(self, bar: Any) -> None:
        """Validate, keep the best, log, and make the epoch's checkpoint."""
        average_buffers(self.net, self.world, self.experiment.runtime)
        self._finite_state()
        self.stage.tools.end_epoch()
        with frozen_layers(self.net):  # whose kernels are merged once, for its score and its histograms
            self._validate()
        self.epoch, self.totals = self.epoch + 1, EpochTotals()
        self._save_last()
        asked = torch.tensor(float(bool(self.context.stop)), device=self.context.device)
        if self.world.added_up(asked):
            self._end()

    def _end(self) -> None:
        """All ranks stop, whichever of them was asked to."""
        self.context.stop.check()
        raise Interrupted(signal.SIGTERM)

    def _validate(self) -> None:
        task = self.experiment.task
        score = evaluate(self.net, self.experiment.data.val, task, self.context.device, self.world)
        if math.isnan(score):
            require_usable_images(self.experiment.data.val.batches(EVAL_BATCH), "the validation split")
        better = self.best_score is None or (
            score >= self.best_score if task.higher_is_better else score <= self.best_score
        )
        if better and not math.isnan(score):  # of equals the later one: it has trained longer
            if score != self.best_score:
                self.better_epoch = self.epoch
            self.best_score, self.best_epoch = score, self.epoch
            self._save_best(score, self.epoch)
        self._log_epoch(score)

    def _log_epoch(self, score: float) -> None:
        self.told.epoch(self.net, self.step, self.epoch, self.totals, score, self.seconds)

    def _finite_state(self) -> dict[str, Any]:
        """The net's tensors; an error, before anything is overwritten, if one of them is not finite."""
        state = self.net.state_dict()
        for key, tensor in state.items():
            if not all_finite(tensor):
                require_usable_images(self._batches(), "the training split")
                raise CheckError(
                    f"After step {self.step} of {self.stage.name.upper()}, {key} is not finite. {self._advice()}"
                )
        return state

    def _advice(self) -> str:
        return advice(self.stage.name, self.stage.options.lr, self.experiment.optim, self.step, sees_nothing(self.net))

    def _save_best(self, score: float | None, epoch: int) -> None:
        content = {"stage": self.stage.name, "epoch": epoch, "score": score, "net": self._finite_state()}
        if self.world.leads:
            checkpoint.save(self.stage.best, {**content, "signature": self.experiment.signature})

    def _save_last(self) -> None:
        average_buffers(self.net, self.world, self.experiment.runtime)
        content = {
            "stage": self.stage.name,
            "epoch": self.epoch,
            "totals": asdict(self.totals),
            "net": self._finite_state(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.arithmetic.state(),
            "best_score": self.best_score,
            "best_epoch": self.best_epoch,
            "better_epoch": self.better_epoch,
            "seconds": self.seconds,
            "earlier": self.earlier,
            "step_seconds": self.timer.seconds,
            "input_seconds": self.timer.waits,
            "signature": self.experiment.signature,
            "fp_key": self.context.fp_key,
        }
        if self.world.leads:
            checkpoint.save_last(self.context.folder, content | self.log.state())


def train_stage(
    stage: Stage,
    net: nn.Module,
    context: RunContext,
    times: dict[str, float | None],
    saved: dict[str, Any] | None,
) -> None:
    """Train ``net``, from ``saved`` if that is a checkpoint of this stage, and add what it took to ``times``."""
    context.world.meet()
    trainer = StageTrainer(stage, net, context, dict(times))
    if saved is not None and saved["stage"] == stage.name and context.world.leads:
        saved = fitting(stage, context, saved, net, trainer.optimizer)
    saved = context.world.broadcast(saved)
    if saved is not None and saved["stage"] == stage.name:
        trainer.restore(saved)
        logger.info("%s goes on after epoch %d, step %d", stage.name.upper(), trainer.epoch, trainer.step)
    trainer.fit()
    if trainer.seconds:
        if trainer.epoch < stage.options.epochs:
            times[f"{stage.name}_stopped_after"] = trainer.epoch
        times[f"{stage.name}_seconds"] = round(trainer.seconds, 3)
        times[f"{stage.name}_step_ms"] = trainer.timer.median_ms()
        times[f"{stage.name}_input_share"] = trainer.timer.input_share()
