"""One epoch of training, one pass of evaluation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from repq_cli.data.base import Batch, Evaluation
from repq_cli.devices import in_float64
from repq_cli.errors import CheckError
from repq_cli.quant.layers import QuantLayer, clip_latent_weights

EVAL_BATCH = 256
TIMED_STEPS = 500


class Task(Protocol):
    """What a network is trained for; see ``repq_cli.tasks``."""

    name: str
    metric: str
    unit: str
    higher_is_better: bool
    agreement_name: str

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor: ...
    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor: ...
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
    """Seconds of the latest training steps."""

    seconds: list[float] = field(default_factory=list)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Time one step."""
        start = time.perf_counter()
        yield
        self.seconds.append(time.perf_counter() - start)
        del self.seconds[:-TIMED_STEPS]

    def median_ms(self) -> float | None:
        """The median step in milliseconds."""
        return sorted(self.seconds)[len(self.seconds) // 2] * 1000 if self.seconds else None


def training_step(
    net: nn.Module,
    batch: Batch,
    task: Task,
    optimizer: torch.optim.Optimizer,
    lr: float,
    clip_norm: float | None,
    penalty: Callable[[], Tensor] | None = None,
) -> tuple[float, float]:
    """One update; returns loss and mean score. Raises CheckError, with the layer's name, if the loss is not finite.

    ``penalty`` is added to the loss that is minimised, not to the one that is returned.
    """
    x, targets = batch
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)
    outputs = net(x)
    loss = task.loss(outputs, targets)
    objective = loss if penalty is None else loss + penalty()
    mean = mean_score(task.scores(outputs.detach(), targets))
    # One transfer for all: a GPU has to be waited for.
    value, minimised, score = torch.stack([part.detach().float() for part in (loss, objective, mean)]).tolist()
    if not math.isfinite(minimised):
        raise CheckError(
            f"The loss became {minimised}: {first_non_finite(net, x)}. The last good checkpoint is kept; "
            f"a lower learning rate or optim.clip_norm usually helps."
        )
    optimizer.zero_grad(set_to_none=True)
    objective.backward()
    if clip_norm is not None:
        nn.utils.clip_grad_norm_(net.parameters(), clip_norm)
    optimizer.step()
    clip_latent_weights(net)
    return value, score


def mean_score(scores: Tensor) -> Tensor:
    """The mean without infinite ones, the PSNR of identical pictures, which would hide all others; infinite if all are.

    >>> mean_score(torch.tensor([30.0, math.inf, 34.0])).item(), mean_score(torch.tensor([math.inf])).item()
    (32.0, inf)
    """
    finite = ~scores.isposinf()
    mean = scores.where(finite, 0.0).sum() / finite.sum()
    return mean.where(finite.any(), math.inf)  # no look at the values, for which a GPU would have to be waited


@torch.no_grad()
def evaluate(net: nn.Module, split: Evaluation, task: Task, device: torch.device) -> float:
    """The task's metric over a whole split, in eval mode."""
    was_training = net.training
    net.eval()
    scores = [task.scores(net(x), targets) for x, targets in split.batches(EVAL_BATCH, device)]
    net.train(was_training)
    return mean_score(in_float64(torch.cat(scores))).item()


@torch.no_grad()
def first_non_finite(net: nn.Module, x: Tensor) -> str:
    """Names the first layer, in the order of execution, with a parameter or an output that is not finite."""
    if not _finite(x):
        return "the input batch itself is not finite"
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
    return found[0] if found else "every layer is finite, the loss itself is not"


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
