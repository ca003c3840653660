"""What is said of training that diverges: where it began, and what to change."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from repq_cli.data.base import Batch
from repq_cli.errors import CheckError, DataError, RepqError
from repq_cli.quant.layers import QuantLayer
from repq_cli.train.options import OptimOptions

EXPLODED = 2.0  # times the loss of who guesses
LEFT = 0.1  # of what the FP net has over who guesses, below which nothing of it was kept
USUAL_RATE = {"sgd": 0.01, "adamw": 1e-3}


def advice(stage: str, lr: float, optim: OptimOptions, step: int, dead: str | None = None) -> str:
    """The keys to change, with values.

    step: updates that the stage has made, without which no rate is to blame. dead: a layer that cannot tell images
    apart, so that no rate helps.

    >>> advice("qat", 1e25, OptimOptions("sgd", 1e-4, 0.0), 3)
    'The last good checkpoint is kept; try qat.lr=0.01 instead of 1e+25.'
    """
    if dead is not None:
        return (
            f"Layer '{dead}' is given the same for every image, so that no learning rate helps: train FP longer or "
            f"with a lower fp.lr, or choose another fp.checkpoint."
        )
    if step == 0:
        before = "another fp.checkpoint, or more fp.epochs" if stage == "qat" else "another model, or smaller inputs"
        return f"Nothing has been trained in this stage yet, so that no learning rate helps: it needs {before}."
    lower = min(lr / 10, USUAL_RATE[optim.name])
    # A gradient of limited size bounds SGD's steps by the rate alone; Adam's always are.
    clip = ", or optim.clip_norm=1" if optim.name == "sgd" and optim.clip_norm is None and lr <= 1 else ""
    return f"The last good checkpoint is kept; try {stage}.lr={lower:g} instead of {lr:g}{clip}."


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


def lost(fp: float | None, deployed: float | None, guessing: float | None, unit: str) -> str | None:
    """What to say of a deployed net that is no better than ``guessing``, chance or bicubic, where the FP net is.

    >>> lost(97.2, 10.0, 10.0, "%")
    'The deployed net (10.00 %) has lost what the FP net (97.20 %) knew: without any training 10.00 % are reached.'
    """
    if fp is None or deployed is None or guessing is None or fp <= guessing:
        return None
    if deployed - guessing >= LEFT * (fp - guessing):
        return None
    return (
        f"The deployed net ({deployed:.2f} {unit}) has lost what the FP net ({fp:.2f} {unit}) knew: without any "
        f"training {guessing:.2f} {unit} are reached."
    )


def diverged(net: nn.Module, batch: Batch, loss: float, hint: str) -> RepqError:
    """The error for a loss that is not finite: of the data, of the loss, or of the net, for which alone ``hint`` is."""
    x, targets = batch
    for what, tensor in (("images", x), ("targets", targets)):
        if not _finite(tensor):
            return DataError(f"The {what} of a training batch hold NaN or infinity: mend or leave out such files.")
    where = first_non_finite(net, x)
    if where is None:
        return CheckError(
            f"The loss became {loss}, though every layer's outputs are finite: the loss itself is at fault."
        )
    return CheckError(f"The loss became {loss}: {where}. {hint}")


@torch.no_grad()
def first_non_finite(net: nn.Module, x: Tensor) -> str | None:
    """Names the first layer, in the order of execution, with a parameter or an output that is not finite."""
    found: list[str] = []

    def look_at(name: str) -> Callable[[nn.Module, object, object], None]:
        def look(module: nn.Module, inputs: object, output: object) -> None:
            broken = [key for key, parameter in module.named_parameters() if not _finite(parameter)]
            if broken:
                found.append(
                    f"the {'step' if broken[0].endswith('raw_step') else broken[0]} of layer '{name}' is not finite"
                )
            elif isinstance(output, Tensor) and not _finite(output):
                found.append(f"the output of layer '{name}' is the first that is not finite")

        return look

    hooks = [module.register_forward_hook(look_at(name)) for name, module in _layers(net).items()]
    try:
        net(x)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _layers(net: nn.Module) -> dict[str, nn.Module]:
    """Quantized layers as wholes, and every other module that has no parts."""
    layers: dict[str, nn.Module] = {}
    inside: set[nn.Module] = set()
    for name, module in net.named_modules():
        if isinstance(module, QuantLayer):
            layers[name] = module
            inside.update(module.modules())
        elif module not in inside and not list(module.children()):
            layers[name] = module
    return layers
