"""``task=classification``: cross-entropy and top-1 accuracy."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


class Classification:
    """Logits ``[B, classes]`` against labels ``[B]``."""

    name = "classification"
    metric = "top1"
    unit = "%"
    higher_is_better = True

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats, with label smoothing."""
        return F.cross_entropy(outputs, targets, label_smoothing=self.label_smoothing)

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Per image 100 where the largest logit is the label's, else 0; the metric is their mean."""
        return (outputs.argmax(1) == targets).float() * 100

    def agreement(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """Per image 100 where two networks answer the same, else 0."""
        return (outputs.argmax(1) == reference.argmax(1)).float() * 100
