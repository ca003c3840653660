"""``task=classification``: cross-entropy and top-1 accuracy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repq_cli.errors import DataError

BATCH = 256  # images that are evaluated together


class LabelledImages(Protocol):
    """Images and labels in batches."""

    def batches(self, batch_size: int, device: torch.device) -> Iterable[tuple[Tensor, Tensor]]: ...


class Classification:
    """Logits ``[B, classes]`` against labels ``[B]``, or in training their probabilities ``[B, classes]``."""

    name = "classification"
    metric = "top1"
    unit = "%"
    higher_is_better = True
    agreement_name = "top1_agreement"

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats, with label smoothing."""
        return F.cross_entropy(outputs, targets, label_smoothing=self.label_smoothing)

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Per image 100 where the largest logit is the label's, else 0; the metric is their mean."""
        targets = targets if targets.dim() == 1 else targets.argmax(1)
        return (outputs.argmax(1) == targets).float() * 100

    def baselines(self) -> dict[str, nn.Module]:
        """Nothing classifies without training."""
        return {}

    def set_keys(self, data: str, name: str) -> dict[str, Any]:
        """How a row names a split."""
        return {"set": f"{data}/{name}"}

    def measurements(
        self, net: nn.Module, images: LabelledImages, device: torch.device, tile: int
    ) -> Iterator[dict[str, Tensor]]:
        """Every metric, batch by batch; ``tile`` is for pictures. DataError for images that are not finite."""
        for x, targets in images.batches(BATCH, device):
            if not torch.isfinite(x).all():  # the largest of NaN would be an answer
                raise DataError("The images of an evaluation set hold NaN or infinity: mend or leave out such files.")
            yield {self.metric: self.scores(net(x), targets)}

    def agreement(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """Per image 100 where two networks answer the same, else 0."""
        return (outputs.argmax(1) == reference.argmax(1)).float() * 100
