"""What QAT may do beside its training steps: the keys of ``qat`` that are off by default."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repq_cli.modes.restated_norms import reestimate_statistics
from repq_cli.quant.step_rules import bring_steps_back
from repq_cli.train.log import logger
from repq_cli.train.optim import stop_steps
from repq_cli.train.options import QATOptions
from repq_cli.train.tools import Tools


def distilled(loss: Tensor, outputs: Tensor, taught: Tensor, weight: float, temperature: float) -> Tensor:
    """``(1 - a) loss + a T^2 KL(softmax(taught / T) || softmax(outputs / T))``, the mean over a batch, in nats.

    Shapes: logits ``[B, classes]``. T^2 keeps gradients as large as the loss's own at any temperature. Source: arXiv
    1503.02531, section 2.
    """
    student, teacher = (F.log_softmax(logits / temperature, 1) for logits in (outputs, taught))
    divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return (1 - weight) * loss + weight * temperature**2 * divergence


class QATTools(Tools):
    """Those that ``options`` ask for.

    teacher: the FP net in eval mode, where distillation is asked for.
    batches: gives those from which statistics are taken anew, at the end.
    """

    def __init__(
        self,
        net: nn.Module,
        options: QATOptions,
        teacher: nn.Module | None = None,
        batches: Callable[[int], Iterable[Tensor]] = lambda count: (),
    ) -> None:
        self.net, self.options, self.teacher, self.batches = net, options, teacher, batches

    def objective(self, loss: Tensor, outputs: Tensor, x: Tensor) -> Tensor:
        if self.teacher is None:
            return loss
        with torch.no_grad():
            taught = self.teacher(x)
        return distilled(loss, outputs, taught, self.options.distill_weight, self.options.temperature)

    def begin_step(self, optimizer: torch.optim.Optimizer, done: float) -> None:
        if self.options.freeze_steps_at is not None and done >= self.options.freeze_steps_at:
            stop_steps(optimizer)

    def end_epoch(self) -> None:
        factor = self.options.steps_within
        if factor is None:
            return
        assert factor != "auto", "the configuration decides"
        found = bring_steps_back(self.net, factor)
        if found:
            logger.debug("%d weight steps start anew at least squared error.", found)

    def finish(self) -> bool:
        count = self.options.reestimate_bn
        if not count:
            return False
        norms = reestimate_statistics(self.net, self.batches(count))
        if norms == 0:
            logger.warning("qat.reestimate_bn=%d: no batch norm of this net follows its batches.", count)
        return norms > 0
