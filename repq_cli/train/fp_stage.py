"""The FP stage of a run: its net is trained here, or comes from a file, or from a run that trained the same stage."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from repq_cli.errors import DataError
from repq_cli.files import PASSING, link, make_folder, read_regular
from repq_cli.modes.restated_norms import with_reinserted_norms
from repq_cli.pretrained.layout import normed
from repq_cli.reparam.block import merge_first
from repq_cli.runs.folder import RunFolder
from repq_cli.runs.networks import foreign_network
from repq_cli.runs.row import now, prune
from repq_cli.seeds import derive_seed
from repq_cli.train import checkpoint
from repq_cli.train.checkpoint import fp_checkpoint
from repq_cli.train.context import RunContext, Stage, first_batches
from repq_cli.train.fp_cache import FPCache
from repq_cli.train.fp_weights import load_fp, load_own
from repq_cli.train.log import RunLog, logger
from repq_cli.train.optim import patterns_without_match
from repq_cli.train.stage import train_stage


class FPStage:
    """Makes the FP net, leaves it in checkpoints/fp.pt, and adds the stage's times to ``times``."""

    def __init__(self, context: RunContext, times: dict[str, float | None], owner: RunFolder | None = None) -> None:
        """``owner``: the run that others are told trained it, by default that of the context."""
        self.context, self.times, self.owner = context, times, owner or context.folder
        self.experiment = experiment = context.experiment
        shared = experiment.fp.reuse and experiment.fp.checkpoint is None
        self.cache = FPCache(context.fp_key) if shared else None
        self._waiting = self._is_trained = False

    def net(self, saved: dict[str, Any] | None) -> nn.Module:
        """The FP net. ``saved``: the run's last checkpoint, if it is resumed.

        Of several ranks the first decides whether it is trained, which all of them do then, or taken.
        """
        world = self.context.world
        if world.leads:
            net = self._made(saved)
            if not self._is_trained:
                world.share(False)
        else:
            net = self._fresh()
            if world.share():
                self._train(net, None)
        world.take_over(net)
        return net

    def _fresh(self) -> nn.Module:
        experiment = self.experiment
        torch.manual_seed(derive_seed(experiment.seed, "fp"))
        net = experiment.make_net().to(self.context.device)
        merge_first(net, experiment.fp.merged_training is True)
        return net

    def _made(self, saved: dict[str, Any] | None) -> nn.Module:
        experiment, net = self.experiment, self._fresh()
        if saved is not None and saved["stage"] == "qat":
            self._load_kept(net)
            self.times |= saved["earlier"]
        elif experiment.fp.checkpoint is not None:
            self._load(net, experiment.fp.checkpoint)
        elif self.cache is not None and self._may_be_shared():
            self._train_once(net, saved, self.cache)
        else:
            self._train(net, saved)
        return net

    def _load_kept(self, net: nn.Module) -> None:
        """The FP net that the run has made before; where its file is damaged, it is taken or trained once more."""
        folder = self.context.folder
        try:
            if (foreign := foreign_network(folder, self.context.earlier, "fp")) is not None:
                raise DataError(foreign)
            load_own(net, folder.fp, self.experiment.signature)
            return
        except DataError as error:
            logger.warning("%s The FP stage is taken or trained once more.", error)
        again = RunFolder(folder.fp_again)
        make_folder(again.checkpoints)
        context = replace(self.context, folder=again, log=RunLog(again, trackers=[], quiet=True), earlier={})
        stage = FPStage(context, {}, owner=folder)
        stage._made(checkpoint.load_last(again))
        self._is_trained = stage._is_trained
        link(again.fp, folder.fp)
        load_own(net, folder.fp, self.experiment.signature)
        shutil.rmtree(again.path, ignore_errors=True)

    def origin(self) -> str | None:
        """The run folder or file whose FP stage this is; None where the run trained its own."""
        if self.cache is None:
            return self.experiment.fp.checkpoint
        about = self.cache.about()
        if about is None or Path(about["run"]).resolve() == self.context.folder.path.resolve():
            return None
        return str(about["run"])

    def _may_be_shared(self) -> bool:
        """Whether another run with the same key would train the same; says so where not."""
        why = None
        if self.experiment.identity.training is None:
            why = f"data={self.experiment.data_name} does not tell what it consists of."
        elif self.context.fp_key != self.experiment.fp_key:
            why = "its epochs, data, sources or versions are not those that it began with."
        if why is not None:
            logger.warning("This FP stage is not shared with other runs: %s", why)
        return why is None

    def _load(self, net: nn.Module, path: str) -> None:
        experiment = self.experiment
        choice = load_fp(net, fp_checkpoint(path), experiment.fp, experiment.signature)
        logger.info("FP weights from %s: %s", path, choice)
        if choice.fit.layout.merged and normed(net):
            logger.info("They were merged: batch norms are re-inserted, with the training images' statistics.")
            net.load_state_dict(with_reinserted_norms(net, first_batches(self.context, "fp")).state_dict())
        if experiment.fp.head == "new" and (experiment.qat.epochs == 0 or not experiment.mode.rule.trains):
            logger.warning("The classifier is new and this run does not train it: its answers are drawn at random.")
        content = {"stage": "fp", "net": net.state_dict(), "signature": experiment.signature}
        checkpoint.save(self.context.folder.fp, content)

    def _train(self, net: nn.Module, saved: dict[str, Any] | None) -> None:
        for pattern in patterns_without_match(net, self.experiment.optim.decay_also):
            logger.warning("optim.decay_also has '%s', which is the name of no parameter of this net.", pattern)
        if self.context.world.leads:
            self.context.world.share(True)
        self._is_trained = True
        stage = Stage("fp", self.experiment.fp, self.context.folder.fp)
        train_stage(stage, net, self.context, self.times, saved)

    def _train_once(self, net: nn.Module, saved: dict[str, Any] | None, cache: FPCache) -> None:
        """Take the stage that another run trained, wait for the process that trains it now, or train and keep it."""
        shared: FPCache | None = cache
        with ExitStack() as stack:
            try:
                stack.enter_context(cache.held(self._wait))
            except DataError as error:
                logger.warning("This FP stage is not shared with other runs: %s", error)
                shared = None
            if shared is None or not self._reused(shared, net):
                self._train(net, saved)
                if shared is not None:
                    self._keep(shared)

    def _wait(self) -> None:
        self.context.stop.check()
        if not self._waiting:
            logger.info(
                "Another process trains this FP stage (%s): waiting for it; with fp.reuse=false a run trains its own.",
                self.experiment.fp_key,
            )
            self._waiting = True

    def _reused(self, cache: FPCache, net: nn.Module) -> bool:
        about, fp = cache.about(), self.context.folder.fp
        if about is None:
            if cache.is_damaged:
                logger.warning(
                    "What %s says of its FP stage is damaged or half written: it is trained again.", cache.folder
                )
                cache.drop()
            return False
        try:
            if (damage := cache.damage(about)) is not None:
                raise DataError(damage)
            lines = read_regular(cache.log)
            link(cache.weights, fp)
            load_own(net, fp, self.experiment.signature)  # last: where it fails, the net is as it was
        except (DataError, OSError) as error:
            if isinstance(error, OSError) and error.errno in PASSING:
                raise
            logger.warning("The stored FP stage %s cannot be used and is trained again: %s", cache.folder, error)
            cache.drop()
            return False
        self.context.log.adopt(lines)
        cache.touch()
        self.times |= about["time"]
        logger.info("FP stage as trained in %s (fp.reuse=false trains it again)", about["run"])
        return True

    def _keep(self, cache: FPCache) -> None:
        experiment = self.experiment
        about = {
            "run": str(self.owner),
            "stored": now(),
            "model": experiment.model,
            "rep": experiment.signature["rep"],
            "data": experiment.data_name,
            "seed": experiment.seed,
            "epochs": experiment.fp.epochs,
            "time": prune(self.times),
        }
        try:
            cache.store(self.context.folder.fp, self.context.log.path, about)
        except DataError as error:
            logger.warning("This FP stage is not kept for other runs: %s", error)
