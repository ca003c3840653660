"""A transposed convolution with what stands behind it: a layer of its own kind, with no branches to merge."""

from __future__ import annotations

from torch import Tensor, nn

from repq_cli.reparam.block import Block


class Transposed(nn.Module):
    """``activation(norm(conv(x)))``; ``norm`` may be None. In QAT the batch norm stays behind the codes' sums."""

    kind = "transposed"

    def __init__(
        self, conv: nn.ConvTranspose2d, norm: nn.BatchNorm2d | None = None, activation: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.conv, self.norm, self.activation = conv, norm, activation or nn.Identity()

    def before_activation(self, x: Tensor) -> Tensor:
        """Convolution and batch norm."""
        y: Tensor = self.conv(x)
        return y if self.norm is None else self.norm(y)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.before_activation(x))


LAYERS = (Block, Transposed, nn.Linear)  # what becomes a quantized layer
