"""What is said of training that diverges: where it began, and what to change."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from repq_cli.data.base import Batch, Evaluation, Split
from repq_cli.errors import CheckError, DataError, RanksError, RepqError
from repq_cli.quant.layers import QuantLayer
from repq_cli.reparam.block import Block
from repq_cli.train.options import OptimOptions

EXPLODED = 2.0  # times the loss of who guesses
LEFT = 0.1  # of what the FP net has over who guesses, below which nothing of it was kept
USUAL_RATE = {"sgd": 0.01, "adamw": 1e-3}
USUAL_DECAY = 1e-4


def advice(stage: str, lr: float, optim: OptimOptions, step: int, dead: str | None = None) -> str:
    """The keys to change, with values.

    step: updates that the stage has made, without which no rate is to blame. dead: a layer that cannot tell images
    apart, so that no rate helps.

    >>> advice("qat", 1e25, OptimOptions(name="sgd", weight_decay=1e-4, label_smoothing=0.0), 3)
    'Try qat.lr=0.01 instead of 1e+25.'
    >>> advice("fp", 0.1, OptimOptions(name="sgd", weight_decay=1e3, label_smoothing=0.0, bias_lr=1e9), 3)
    'Try optim.weight_decay=0.0001 instead of 1000 and optim.bias_lr=1 instead of 1e+09.'
    """
    if dead is not None:
        return (
            f"Layer '{dead}' is given the same for every image, so that no learning rate helps: train FP longer or "
            f"with a lower fp.lr, or choose another fp.checkpoint."
        )
    if step == 0:
        before = "another fp.checkpoint, or more fp.epochs" if stage == "qat" else "another model, or smaller inputs"
        return f"Nothing has been trained in this stage yet, so that no learning rate helps: it needs {before}."
    usual = USUAL_RATE[optim.name]
    lower = min(lr / 10, usual)
    changes = []
    if lower * optim.weight_decay >= 1:  # an update would take away more than the weight, at the lower rate too
        changes.append(f"optim.weight_decay={USUAL_DECAY:g} instead of {optim.weight_decay:g}")
    if lower * optim.bias_lr >= 1:
        changes.append(f"optim.bias_lr=1 instead of {optim.bias_lr:g}")
    if lr > 1 or not changes:
        # A gradient of limited size bounds SGD's steps by the rate alone; Adam's always are.
        clip = ", or optim.clip_norm=1" if optim.name == "sgd" and optim.clip_norm is None and lr <= 1 else ""
        changes.append(f"{stage}.lr={lower:g} instead of {lr:g}{clip}")
    return f"Try {' and '.join(changes)}."


def exploded(stage: str, loss: float | None, classes: int) -> str | None:
    """What to say of a stage whose last epoch had a loss far above that of equal answers for all classes.

    >>> exploded("qat", 2.4, 10) is None
    True
    >>> exploded("qat", 1868.0, 10)
    'QAT ended with a loss of 1868, where equal answers for all classes have 2.303: its training diverged.'
    """
    guessing = math.log(classes)
    if loss is None or loss <= EXPLODED * guessing:
        return None
    return (
        f"{stage.upper()} ended with a loss of {loss:.4g}, where equal answers for all classes have {guessing:.4g}: "
        f"its training diverged."
    )


def useless(fp: float | None, deployed: float | None, guessing: float | None, noise: float, unit: str) -> str | None:
    """What to say of a deployed net that has nothing, or next to nothing, over ``guessing``, chance or bicubic.

    noise: by how much who guesses may be better by luck.

    >>> useless(97.2, 10.0, 10.0, 3.2, "%")
    'The deployed net (10.00 %) has lost what the FP net (97.20 %) knew: without any training 10.00 % are reached.'
    >>> print(useless(29.38, 5.0, 30.0, 0.0, "dB").partition(" Train")[0])
    The deployed net (5.00 dB) is of no use, as the FP net (29.38 dB) is: without any training 30.00 dB are reached.
    """
    if fp is None or deployed is None or guessing is None:
        return None
    if deployed >= guessing + max(noise, LEFT * (fp - guessing)):
        return None
    reached = f"without any training {guessing:.2f} {unit} are reached."
    if fp > guessing + noise:
        return f"The deployed net ({deployed:.2f} {unit}) has lost what the FP net ({fp:.2f} {unit}) knew: {reached}"
    return (
        f"The deployed net ({deployed:.2f} {unit}) is of no use, as the FP net ({fp:.2f} {unit}) is: {reached} "
        f"Train FP longer, or with another fp.lr."
    )


def chance(split: Evaluation, classes: int) -> tuple[float, float]:
    """What who always gives the most frequent class has on ``split``, in percent, and twice its deviation by luck."""
    share = 1 / classes
    if isinstance(split, Split):
        share = split.labels.bincount().max().item() / len(split)
    return 100 * share, 200 * math.sqrt(share * (1 - share) / len(split))


def require_usable_images(batches: Iterable[Batch], of: str) -> None:
    """DataError for images that no network can be trained with or judged by, whatever its rate."""
    for x, _ in batches:
        if not _finite(x):
            raise DataError(f"The images of {of} hold NaN or infinity: mend or leave out such files.")
        if not _finite(x.square()):
            raise DataError(
                f"The images of {of} go up to {x.abs().max():.3g}, and their squares overflow float32: scale them, or "
                f"leave out such files."
            )


def diverged(net: nn.Module, batch: Batch, loss: float, hint: str, among_others: bool = False) -> RepqError:
    """The error for a loss that is not finite: of the loss, or of the net, for which alone ``hint`` is.

    among_others: the batch is one rank's part of the one that the loss is of.
    Raises DataError where the data are at fault.
    """
    x, targets = batch
    require_usable_images([batch], "a training batch")
    if not _finite(targets):
        return DataError("The targets of a training batch hold NaN or infinity: mend or leave out such files.")
    where = first_non_finite(net, x)
    if where is None and among_others:
        return RanksError(f"The loss became {loss}, and not by this rank's part of the batch.")
    if where is None:
        return CheckError(
            f"The loss became {loss}, though every layer's outputs are finite: the loss itself is at fault."
        )
    return CheckError(f"The loss became {loss}: {where}. {hint}")


@torch.no_grad()
def first_non_finite(net: nn.Module, x: Tensor) -> str | None:
    """Names the first layer, in the order of execution, with a parameter or an output that is not finite."""
    found: list[str] = []

    def look_in(name: str) -> Callable[[nn.Module, object], None]:
        def look(module: nn.Module, inputs: object) -> None:
            broken = [key for key, parameter in module.named_parameters() if not _finite(parameter)]
            if broken:
                what = "step" if broken[0].endswith("raw_step") else broken[0]
                found.append(f"the {what} of layer '{name}' is not finite")

        return look

    def look_behind(name: str) -> Callable[[nn.Module, object, object], None]:
        def look(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and not _finite(output):
                found.append(f"the output of layer '{name}' is the first that is not finite")

        return look

    layers = _layers(net, QuantLayer)
    hooks = [module.register_forward_hook(look_behind(name)) for name, module in layers.items()]
    wholes = _layers(net, QuantLayer, Block)  # whose branches compute without their convolutions being called
    hooks += [module.register_forward_pre_hook(look_in(name)) for name, module in wholes.items()]
    try:
        net(x)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _layers(net: nn.Module, *wholes: type[nn.Module]) -> dict[str, nn.Module]:
    """Those of some kinds as wholes, and every other module that has no parts."""
    layers: dict[str, nn.Module] = {}
    inside: set[nn.Module] = set()
    for name, module in net.named_modules():
        if isinstance(module, wholes) and module not in inside:
            layers[name] = module
            inside.update(module.modules())
        elif module not in inside and not list(module.children()):
            layers[name] = module
    return layers
