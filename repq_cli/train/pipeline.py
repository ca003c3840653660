"""The steps of a run: FP, QAT, freeze, check, evaluate."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from repq_cli.answers import tensors
from repq_cli.deploy.check import Agreement, compare
from repq_cli.deploy.cost import cost, parameter_count
from repq_cli.deploy.freeze import freeze
from repq_cli.deploy.network import DeployedNet, size_on_disk
from repq_cli.devices import peak_memory_bytes
from repq_cli.errors import CheckError
from repq_cli.images.panel import side_by_side
from repq_cli.modes.calibrate import calibrate, sees_nothing
from repq_cli.modes.compose import compose, freeze_statistics, merge_blocks
from repq_cli.modes.weights import blocks_behind, weight_histograms
from repq_cli.quant.frozen_layers import frozen_layers
from repq_cli.reparam.block import merge_first
from repq_cli.runs.networks import foreign_network, network_digests
from repq_cli.runs.quality import ENGINES
from repq_cli.runs.row import Row, merge_metrics, now
from repq_cli.seeds import derive_seed
from repq_cli.train.checkpoint import load_last
from repq_cli.train.context import RunContext, Stage, first_batches
from repq_cli.train.divergence import chance, exploded, useless
from repq_cli.train.engine import EVAL_BATCH
from repq_cli.train.evaluation import crops, measure, value_of, write_crops
from repq_cli.train.exported import will_be_floating
from repq_cli.train.fp_key import mixed_key
from repq_cli.train.fp_stage import FPStage
from repq_cli.train.log import logger
from repq_cli.train.mending import frozen_again
from repq_cli.train.options import QATOptions
from repq_cli.train.outcome import choices, final_metrics
from repq_cli.train.qat_tools import QATTools
from repq_cli.train.stage import train_stage

MERGE_TOLERANCE = 1e-4  # of float32 merging, relative to the largest output


@torch.no_grad()
def _merging_changes(fp_net: nn.Module, x: Tensor) -> tuple[float, float]:
    """The largest difference of the outputs before and after merging, and the largest output, at least 1."""
    merged = merge_blocks(fp_net)
    branches = copy.deepcopy(fp_net).eval()
    merge_first(branches, False)
    expected, found = tensors(branches(x)), tensors(merged(x))
    differences = [(a - b).abs().max().item() for a, b in zip(found, expected, strict=True)]
    return max(differences, key=_nan_first), max(1.0, *(tensor.abs().max().item() for tensor in expected))


def _nan_first(number: float) -> float:
    return math.inf if math.isnan(number) else number


class Run:
    """The steps of a run, in order; ``row`` is filled in as they succeed."""

    def __init__(self, context: RunContext, row: Row) -> None:
        self.context, self.row = context, row
        self.experiment, self.folder = context.experiment, context.folder
        self.time: dict[str, float | None] = {}
        self.row["time"] = self.time

    @property
    def qat(self) -> QATOptions:
        """The second stage; some modes train nothing in it."""
        qat = self.experiment.qat
        return qat if self.experiment.mode.rule.trains else replace(qat, epochs=0)

    @property
    def steps_per_epoch(self) -> int:
        """Training steps of an epoch."""
        return self.experiment.data.train.steps(self.experiment.batch_size)

    @property
    def fp_steps(self) -> int:
        """Training steps of the FP stage, none where its weights are given."""
        fp = self.experiment.fp
        return 0 if fp.checkpoint is not None else fp.epochs * self.steps_per_epoch

    @property
    def steps(self) -> int:
        """Training steps of both stages."""
        return self.fp_steps + self.qat.epochs * self.steps_per_epoch

    def freeze_again(self) -> bool:
        """Make the deployed network of a finished run again from its checkpoints; False where one of them is lost."""
        net, row = frozen_again(self.context), self.context.earlier
        if net is not None:
            self.deploy(net)
            if foreign_network(self.folder, row, "deploy") is not None:  # as another machine computes it
                row["lineage"]["networks"] = network_digests(self.folder)
                self.folder.write_row(row)
            logger.info("%s is made again from %s.", self.folder.deploy, self.folder.best)
        return net is not None

    def carry_out(self, resume: bool) -> None:
        """FP, QAT, freeze, check, evaluate."""
        leads = self.context.world.leads
        saved = load_last(self.folder) if resume and leads else None
        if saved is None:
            self.context.log.rewind(0, -1)  # a run that was stopped before its first checkpoint starts over
        else:
            self.context = replace(self.context, fp_key=self.continued_key(saved))
        context = self.context
        self.row["lineage"]["fp_cache"] = context.fp_key
        if self.experiment.optim.custom_l2:
            logger.warning("optim.custom_l2 makes RepVGG's merged kernels hard to quantize (arXiv 2212.01593).")
        if leads and saved is None and not self.experiment.config.fast_dev_run:
            for sentence in will_be_floating(self.experiment):
                logger.warning("Once exported, %s; repq info says it by layer.", sentence)
        fp_stage = FPStage(context, self.time)
        fp_net = fp_stage.net(saved)
        self.row["lineage"]["fp_run"] = fp_stage.origin()
        with context.stop.at_once():
            if leads:
                self.row["checks"] = {"merge_max_abs": self.merge_check(fp_net)}
            qat_net = self.starting_net(fp_net)
        self.qat_stage(fp_net, qat_net, saved)
        context.world.close()
        if not leads:
            return
        with context.stop.at_once():
            self.finish(fp_net, qat_net)
        self.folder.write_row(self.row)  # no stop comes between this and the end

    def finish(self, fp_net: nn.Module, qat_net: nn.Module) -> None:
        """What comes after training: freeze, check, evaluate."""
        mode, quant = self.experiment.mode.rule, self.experiment.quant
        self.row |= mode.findings(qat_net, quant)
        shipped = mode.shipped_net(qat_net, quant.init)
        blocks = blocks_behind(qat_net if mode.trains else fp_net)
        with frozen_layers(shipped):  # whose kernels are merged once for all of this
            deployed, agreement = self.deploy(shipped)
            self.row["checks"] |= {
                "freeze_max_lsb": agreement.max_lsb,
                "freeze_max_abs": agreement.max_abs,
                f"freeze_{self.experiment.task.agreement_name}": agreement.answers,
            }
            self.measure(fp_net, qat_net, deployed)
            self.folder.write_weights(weight_histograms(shipped, blocks))
        for warning in self.warnings():
            self.warn(warning)
        self.context.log.trackers.outcome(choices(self.experiment), final_metrics(self.row), self.steps)
        if self.context.earlier:
            self.row["metrics"] = merge_metrics(self.context.earlier["metrics"], self.row["metrics"])
        self.row["lineage"] |= {"networks": network_digests(self.folder), "finished": now()}

    def continued_key(self, saved: dict[str, Any]) -> str:
        """The key of the FP stage of ``saved``: that of its beginning, but of none where it goes on as another one."""
        begun, now = saved.get("fp_key", ""), self.experiment.fp_key
        if begun and (saved["stage"] == "qat" or begun == now):
            return str(begun)
        return mixed_key(begun, now)

    def warn(self, sentence: str) -> None:
        """Say it now, and in the row."""
        logger.warning(sentence)
        self.row.setdefault("warnings", []).append(sentence)

    def warnings(self) -> Iterator[str]:
        """What is wrong with a run that has ended well otherwise; nothing is expected of a trial."""
        if self.experiment.config.fast_dev_run:
            return iter(())
        data, task, metric, log = self.experiment.data, self.experiment.task, self.row["metric"], self.context.log
        classes = data.info.num_classes if task.name == "classification" else 0
        found = [exploded(name, log.last_loss(name), classes) for name in ("fp", "qat")] if classes else []
        wanted = {**task.set_keys(self.experiment.data_name, metric["split"]), "name": task.metric}
        guessing, noise = value_of(self.row["metrics"], wanted | {"engine": "bicubic"}), 0.0
        if classes:
            guessing, noise = chance(data.tests[metric["split"]], classes)
        found.append(useless(metric["fp"], metric["deployed"], guessing, noise, task.unit))
        return (warning for warning in found if warning is not None)

    def first_batches(self) -> Iterator[Tensor]:
        """The batches that QAT will start with: for statistics and steps."""
        return first_batches(self.context, "qat")

    def merge_check(self, fp_net: nn.Module) -> float:
        """Largest difference of the outputs before and after merging, on one batch; CheckError if it is no rounding.

        A net whose batch norms multiply by much magnifies float32's rounding: such a difference is judged in float64.
        """
        x = next(self.first_batches())
        difference, scale = _merging_changes(fp_net, x)
        if difference <= MERGE_TOLERANCE * scale:
            return difference
        exact, scale = _merging_changes(copy.deepcopy(fp_net).cpu().double(), x.cpu().double())
        if not exact <= MERGE_TOLERANCE * scale:
            raise CheckError(
                f"Merging changed the outputs by {exact:g} in float64, more than the {MERGE_TOLERANCE * scale:g} that "
                f"rounding explains: the net has overflowed, or a branch's merge is wrong."
            )
        self.warn(
            f"Merging changed the outputs by {difference:.2g} in float32 and by {exact:.2g} in float64: the FP net "
            f"magnifies rounding, and its running statistics are hardly of use; train it longer, or with a lower rate."
        )
        return difference

    def starting_net(self, fp_net: nn.Module) -> nn.Module:
        """The quantization-aware net before it is trained: composed and calibrated."""
        experiment = self.experiment
        mode, quant = experiment.mode, experiment.quant
        torch.manual_seed(derive_seed(experiment.seed, "qat"))
        start = mode.rule.starting_net(fp_net, self.first_batches(), mode)
        net = compose(start, mode, quant)
        calibrate(net, next(self.first_batches()), quant.init, start)
        steps = "nothing is quantized" if quant.label == "fp32" else f"steps initialised by {quant.init}"
        logger.info("Mode %s at %s: %s", mode.name, quant.label, steps)
        dead = sees_nothing(net)
        if dead is not None:
            self.warn(f"Layer '{dead}' is given the same for every image: the FP net is dead before it.")
        return net

    def qat_stage(self, fp_net: nn.Module, net: nn.Module, saved: dict[str, Any] | None) -> None:
        """Train the quantization-aware net."""
        mode, qat = self.experiment.mode, self.qat

        def on_epoch(epoch: int) -> None:
            if mode.freeze_bn_after is not None and epoch >= mode.freeze_bn_after:
                freeze_statistics(net)

        teacher = None if qat.teacher is None else merge_blocks(fp_net)
        tools = QATTools(net, qat, teacher, partial(first_batches, self.context, "reestimate"))
        stage = Stage("qat", qat, self.folder.best, self.fp_steps, on_epoch, tools, qat.freeze_steps_at is not None)
        train_stage(stage, net, self.context, self.time, saved)

    def deploy(self, qat_net: nn.Module) -> tuple[DeployedNet, Agreement]:
        """Freeze to files, read them back, and prove them equal on the validation split."""
        experiment, info = self.experiment, self.experiment.data.info
        description = {"task": experiment.task.name, **info.description()}
        freeze(qat_net, description).save(self.folder.deploy)
        deployed = DeployedNet.load(self.folder.deploy).to(self.context.device)
        images = (x for x, _ in experiment.data.val.batches(EVAL_BATCH, self.context.device))
        agreement = compare(qat_net, deployed, images, experiment.task.agreement)
        if agreement.max_abs != 0:
            raise CheckError(
                f"The deployed net differs from the trained one by {agreement.max_abs:g} "
                f"({agreement.answers:.2f} % of answers equal): {self.folder.deploy} must not be shipped."
            )
        return deployed, agreement

    def measure(self, fp_net: nn.Module, qat_net: nn.Module, deployed: DeployedNet) -> None:
        """The test sets, once; size, cost, memory."""
        context, task, row = self.context, self.experiment.task, self.row
        tests, device, tile = self.experiment.data.tests, context.device, self.experiment.runtime.tile
        nets = {**task.baselines(), "fp": fp_net, "fake": qat_net, "deployed": deployed}
        name = self.experiment.data_name
        row["metrics"] = measure(nets, tests, task, name, device, tile, context.log.show_bar)
        first = next(iter(tests))
        wanted = {**task.set_keys(name, first), "name": task.metric}
        row["metric"] = {
            "name": task.metric,
            "split": first,
            "higher_is_better": task.higher_is_better,
            "fp": value_of(row["metrics"], wanted | {"engine": "fp"}),
            "qat": value_of(row["metrics"], wanted | {"engine": "fake"}),
            "deployed": value_of(row["metrics"], wanted | {"engine": "deployed"}),
        }
        pictures = {**task.baselines(), "fp": fp_net, "deployed": deployed}
        for set_name, crop in crops(pictures, tests, task, device, tile):
            context.log.trackers.image(
                set_name, side_by_side({ENGINES.get(key, key): picture for key, picture in crop.items()})
            )
            write_crops(self.folder.crops_of(set_name), crop, row["metrics"])
        parameters = parameter_count(deployed)
        row["size"] = {
            "params_train": sum(parameter.numel() for parameter in fp_net.parameters()),
            "params_deployed": parameters,
            "bytes_fp32": 4 * parameters,
            "bytes_packed": size_on_disk(self.folder.deploy),
        }
        row["cost"] = cost(deployed.cpu())._asdict()
        self.time["peak_memory_bytes"] = peak_memory_bytes(context.device)
