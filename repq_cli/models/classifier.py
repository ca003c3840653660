"""What every image classifier ends with: global average pooling and a fully connected layer."""

from __future__ import annotations

from torch import Tensor, nn

from repq_cli.models.tap import Tap


class Classifier(nn.Module):
    """A network whose ``classify`` turns its last feature map into a score for every class."""

    def add_head(self, channels: int, num_classes: int, signed: bool) -> None:
        """Build the layers of ``classify``; ``signed``: whether the feature map has values below zero."""
        self.pool_tap = Tap(signed, pooled=True)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier_tap = Tap(signed)
        self.classifier = nn.Linear(channels, num_classes)

    def classify(self, features: Tensor) -> Tensor:
        """Scores ``[B, num_classes]`` of a feature map ``[B, C, H, W]``."""
        return self.classifier(self.classifier_tap(self.pool(self.pool_tap(features))))
