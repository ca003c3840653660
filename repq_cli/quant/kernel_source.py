"""Where a quantized convolution gets its kernel from."""

from __future__ import annotations

from torch import Tensor, nn

from repq_cli.quant.init import Initialiser


class KernelSource(nn.Module):
    """Gives a convolution its ``(weight, bias)``; the modes say how."""

    def forward(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor | None]:
        """The kernel of this training step; ``x`` is what the convolution reads, ``raw`` the same not quantized."""
        raise NotImplementedError

    def inference(self) -> tuple[Tensor, Tensor | None]:
        """The kernel of eval mode."""
        raise NotImplementedError

    @property
    def follows_batches(self) -> bool:
        """Whether the kernel of training depends on the batch."""
        return False

    def calibrate(self, initialiser: Initialiser) -> None:
        """Initialise the steps of quantizers inside the source, if it has any."""
