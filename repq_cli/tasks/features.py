"""``task=features``: a network that gives several maps, such as a detector's, trained by somebody's own function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from repq_cli.answers import tensors
from repq_cli.errors import ConfigError, DataError

BATCH = 256  # images that are evaluated together
NOISE = 1e-4  # of the power of what a network gives, 40 dB: two answers that differ by less are equal


class TargetedImages(Protocol):
    """Images and targets in batches."""

    def batches(self, batch_size: int, device: torch.device) -> Iterable[tuple[Tensor, Tensor]]: ...


class Features:
    """Whatever a network gives, a tensor or lists, tuples and dicts of tensors, against the targets of the data.

    loss    ``loss(outputs, targets)``: one number, the mean over a batch, which is minimised
    score   ``score(outputs, targets)``: a number for each image, ``[B]``, more is better; None: the loss of each
            batch is the metric, of which less is better

    Both are given ``outputs`` as the network makes them, but that tuples come back as lists from a deployed one.
    """

    name = "features"
    unit = ""
    agreement_name = "feature_agreement"

    def __init__(self, loss: Callable[..., Any], score: Callable[..., Any] | None = None) -> None:
        self._loss, self._score = loss, score
        self.metric = "loss" if score is None else "score"
        self.higher_is_better = score is not None

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """What the function of the configuration gives. Raises ConfigError where that is not one number."""
        found = self._loss(outputs, targets)
        if not isinstance(found, Tensor) or found.numel() != 1:
            raise ConfigError(f"The function of loss=… gives {_said(found)}, and a loss is a tensor of one number.")
        return found.view(())

    def scores(self, outputs: Any, targets: Tensor) -> Tensor:
        """Per image the score, or the loss of the batch; NaN where it is infinite. ConfigError for other sizes."""
        images = len(tensors(outputs)[0])
        if self._score is None:
            found = self.loss(outputs, targets).expand(images)
        else:
            found = self._score(outputs, targets)
            if not isinstance(found, Tensor) or found.shape != (images,):
                raise ConfigError(
                    f"The function of score=… gives {_said(found)} for {images} images, and a score is a tensor of one "
                    f"number for each of them."
                )
        found = found.detach().float()
        return found.where(found.isfinite(), torch.nan)

    def baselines(self) -> dict[str, nn.Module]:
        """None is known."""
        return {}

    def set_keys(self, data: str, name: str) -> dict[str, Any]:
        """How a row names a split."""
        return {"set": f"{data}/{name}"}

    def measurements(
        self, net: nn.Module, images: TargetedImages, device: torch.device, tile: int
    ) -> Iterator[dict[str, Tensor]]:
        """The metric, batch by batch; ``tile`` is for pictures. DataError for images that are not finite."""
        for x, targets in images.batches(BATCH, device):
            if not torch.isfinite(x).all():
                raise DataError("The images of an evaluation set hold NaN or infinity: mend or leave out such files.")
            yield {self.metric: self.scores(net(x), targets)}

    def agreement(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """Per image 100 where what differs in one of the maps is 40 dB below what is there, else 0."""
        noise, signal = (part.flatten(1).square().sum(1) for part in (outputs - reference, reference))
        return (noise <= NOISE * signal).float() * 100


def _said(found: object) -> str:
    return f"a tensor {list(found.shape)}" if isinstance(found, Tensor) else f"{type(found).__name__}"
