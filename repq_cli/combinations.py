"""Rules over several sections of a configuration: what does not go together, with the reason and the way out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from repq_cli.modes.catalogue import AUTO, mode_named
from repq_cli.modes.mode import Mode
from repq_cli.modes.options import ModeOptions
from repq_cli.problems import Problem
from repq_cli.quant.options import METHOD_BITS, QuantOptions, Tensors
from repq_cli.targets import DataSection, ModelSection, RepSection
from repq_cli.train.options import OptimOptions, QATOptions, StageOptions


def _mode_fits_block(options: ModeOptions, rep: RepSection) -> Iterator[Problem]:
    mode = mode_named(options.name)
    yield from _misfit(mode, mode.misfit_of_block(rep.name, rep.batch_norm))


def _mode_fits_quantizer(options: ModeOptions, quant: QuantOptions) -> Iterator[Problem]:
    mode = mode_named(options.name)
    yield from _misfit(mode, mode.misfit_of_quantizer(quant))


def _misfit(mode: Mode, said: str | None) -> Iterator[Problem]:
    if said is not None:
        yield Problem("mode", mode.name, said)


def _statistics_have_images(options: ModeOptions, data: DataSection) -> Iterator[Problem]:
    images = options.statistics_images(data.batch_size)
    if images < 2:
        yield Problem(
            "mode.stats_fraction",
            options.stats_fraction,
            f"leaves {images} of data.batch_size={data.batch_size} images for statistics, which want two; use "
            f"{1.5 / data.batch_size:.2g} or more",
        )


def _penalty_fits_block(mode: ModeOptions, rep: RepSection, optim: OptimOptions) -> Iterator[Problem]:
    fits = rep.name == "repvgg" and rep.batch_norm and mode_named(mode.name).uses_branches
    if optim.custom_l2 and not fits:
        yield Problem(
            "optim.custom_l2",
            True,
            "is the penalty of RepVGG's blocks; it needs rep=repvgg with batch norm and a mode other than plain",
        )


def _merging_fits_block(fp: StageOptions, rep: RepSection) -> Iterator[Problem]:
    if fp.merged_training is True and rep.batch_norm:
        yield Problem(
            "fp.merged_training",
            True,
            f"needs blocks without batch norm, which depends on each branch's outputs; rep={rep.name} has it: use auto "
            f"or false",
        )


def _identity_can_be_split(rep: RepSection, quant: QuantOptions) -> Iterator[Problem]:
    if rep.splits_identity and (quant.weight_method != "lsq" or quant.weight_bits == 1):
        yield Problem(
            "rep.identity",
            "split",
            f"gives the identity wider codes than the others on one grid, which weights of {quant.weight_bits} bit by "
            f"quant.weight_method={quant.weight_method} have not; it needs weight_method=lsq and 2 bits or more",
        )


def _task_fits(task: str, model: ModelSection, data: DataSection, quant: QuantOptions) -> Iterator[Problem]:
    enlarges = "scale" in model.arguments
    if task == "super_resolution" and not enlarges:
        yield Problem(
            "model",
            model.name,
            f"classifies, and data={data.name} is for super-resolution: use model=ecbsr, or other data",
        )
    if task != "super_resolution":
        if enlarges:
            yield Problem(
                "model",
                model.name,
                f"enlarges pictures, and data={data.name} is for {task}: use data=photos or data=sr_folder, or another "
                f"model",
            )
        if quant.output != "float":
            yield Problem("quant.output", quant.output, "is for the pixels of super-resolution")
    elif quant.output == "int8" and quant.act_bits == 32:
        yield Problem("quant.output", "int8", "does not go with quant.act_bits=32, which quantizes no activation")


def _features_have_a_loss(task: str, loss: str | None, score: str | None) -> Iterator[Problem]:
    if task == "features" and loss is None:
        yield Problem(
            "loss", None, "is what task=features trains by: name a function of yours, loss=my_package.losses.mine"
        )
    for key, value in (("loss", loss), ("score", score)):
        if task != "features" and value is not None:
            yield Problem(key, value, f"is for task=features, and task={task} has its own")


def _stages_have_weights(fp: StageOptions, qat: QATOptions) -> Iterator[Problem]:
    if fp.checkpoint is None and fp.epochs == 0:
        yield Problem("fp.epochs", 0, "leaves QAT without FP weights; use 1 or more, or set fp.checkpoint")
    of_a_file = {"format": "auto", "weights": "auto", "head": "same", "input": "same"}
    for key, default in of_a_file.items():
        if fp.checkpoint is None and getattr(fp, key) != default:
            yield Problem(f"fp.{key}", getattr(fp, key), "has no file to describe; set fp.checkpoint as well")
    hints = {"checkpoint": "; go on with a run by resume=DIR", "merged_training": ", where the mode decides"}
    of_fp: dict[str, Any] = {"checkpoint": None, "merged_training": "auto", "reuse": True, **of_a_file}
    for key, default in of_fp.items():
        if getattr(qat, key) != default:
            hint = hints.get(key, " for QAT")
            yield Problem(f"qat.{key}", getattr(qat, key), f"has no meaning{hint}")


def _tools_have_effect(task: str, mode: ModeOptions, quant: QuantOptions, qat: QATOptions) -> Iterator[Problem]:
    if qat.teacher is not None and task != "classification":
        yield Problem("qat.teacher", qat.teacher, f"teaches by probabilities of classes, which task={task} has none of")
    for key, default in (("distill_weight", 0.5), ("temperature", 2.0)):
        if qat.teacher is None and getattr(qat, key) != default:
            yield Problem(f"qat.{key}", getattr(qat, key), "is for distillation; set qat.teacher=fp as well")
    if mode.name == AUTO:
        return
    learned = quant.weight_method == "lsq" and quant.weight_bits < 32 and mode.rule.quantizes_merged
    if qat.steps_within not in (None, "auto") and not learned:
        yield Problem(
            "qat.steps_within",
            qat.steps_within,
            f"is for learned steps of merged kernels, which mode={mode.name} with "
            f"quant.weight_method={quant.weight_method} at {quant.weight_bits} bit has none of",
        )
    if qat.reestimate_bn and (why := _statistics_stay(mode, quant, qat)) is not None:
        yield Problem("qat.reestimate_bn", qat.reestimate_bn, f"takes statistics anew that follow batches, and {why}")


def _statistics_stay(mode: ModeOptions, quant: QuantOptions, qat: QATOptions) -> str | None:
    """Why no batch norm follows the last batches of QAT, as a clause, or None."""
    if mode.has_post_bn(quant.weight_bits):
        return None
    if "freeze_bn_after" not in mode.rule.options or (mode.rule.merges_first and mode.merged_bn == "none"):
        return f"mode={mode.name} has none; use mode=repq_bn or repq_bnest"
    if mode.freeze_bn_after is not None and mode.freeze_bn_after < qat.epochs:
        return f"mode.freeze_bn_after={mode.freeze_bn_after} keeps them still; set it to null"
    return None


def _methods_have_their_bits(quant: QuantOptions) -> Iterator[Problem]:
    asked: dict[Tensors, tuple[int, str]] = {
        "weight": (quant.weight_bits, quant.weight_method),
        "act": (quant.act_bits, quant.act_method),
    }
    for tensors, (bits, method) in asked.items():
        methods = METHOD_BITS[tensors]
        if bits != 32 and bits not in methods[method]:
            legal = ", ".join(map(str, methods[method]))
            fitting = ", ".join(name for name, widths in methods.items() if bits in widths)
            yield Problem(
                f"quant.{tensors}_bits",
                bits,
                f"does not go with quant.{tensors}_method={method}, which is for {legal} bits (or 32 for none); "
                f"{bits} bits: {fitting}",
            )
    if quant.act_bits == 1 and quant.first_last == "same":
        yield Problem(
            "quant.first_last",
            "same",
            "would leave one bit of the image, whose values are real; use 8, inputs8 (weights the same) or fp",
        )


def _quant_keys_have_effect(quant: QuantOptions) -> Iterator[Problem]:
    signs = quant.signs_of_activations
    for key, value, default in (("pad_value", quant.pad_value, 0), ("input_scale", quant.input_scale, False)):
        if value != default and not signs:
            yield Problem(
                f"quant.{key}", value, "is for activations of -1 and 1; it needs quant.act_method=sign, act_bits=1"
            )
    if quant.stochastic and not signs and not quant.signs_of_weights:
        yield Problem("quant.stochastic", True, "is for signs; it needs weight_method=sign or act_method=sign")
    if quant.latent_range != "auto" and not quant.signs_of_weights:
        yield Problem("quant.latent_range", quant.latent_range, "is for signs; it needs quant.weight_method=sign")
    if quant.symmetric and quant.weight_method != "lsq":
        yield Problem("quant.symmetric", True, "is for quant.weight_method=lsq; the other methods are symmetric")


def _signs_have_two_values(quant: QuantOptions, model: ModelSection) -> Iterator[Problem]:
    if quant.signs_of_activations and model.activation in ("relu", "relu6"):
        yield Problem(
            "model.activation",
            model.activation,
            "leaves no value below zero, and the sign of all others is +1; quant.act_method=sign wants the order "
            "convolution, batch norm, sign: use model.activation=hardtanh or null, or quant.act_method=lsq",
        )


# Rules over several sections, which each is given as arguments, where those are sound in themselves.
COMBINATIONS: list[tuple[tuple[str, ...], Callable[..., Iterator[Problem]]]] = [
    (("mode", "rep"), _mode_fits_block),
    (("mode", "quant"), _mode_fits_quantizer),
    (("mode", "data"), _statistics_have_images),
    (("quant",), _methods_have_their_bits),
    (("quant",), _quant_keys_have_effect),
    (("quant", "model"), _signs_have_two_values),
    (("mode", "rep", "optim"), _penalty_fits_block),
    (("fp", "rep"), _merging_fits_block),
    (("rep", "quant"), _identity_can_be_split),
    (("task", "model", "data", "quant"), _task_fits),
    (("task", "loss", "score"), _features_have_a_loss),
    (("fp", "qat"), _stages_have_weights),
    (("task", "mode", "quant", "qat"), _tools_have_effect),
]
