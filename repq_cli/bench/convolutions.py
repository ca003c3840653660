"""The convolutions that a step of RepQ-BN cannot do without, alone: what its time is measured against."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from repq_cli.reparam.algebra import Kernel, convolve
from repq_cli.reparam.block import Block
from repq_cli.reparam.layout import Layout
from repq_cli.reparam.moments import Moments
from repq_cli.reparam.statistics import RunningStatistics


class _Asked(RunningStatistics):
    """Answers with running statistics, and remembers behind which kernels it was asked."""

    def __init__(self) -> None:
        self.kernels: list[Tensor] = []

    def __call__(self, norm: nn.BatchNorm2d, kernel: Kernel | None, geometry: Layout) -> Moments:
        if kernel is not None:
            self.kernels.append(kernel.weight)
        return super().__call__(norm, kernel, geometry)


class _Layer(NamedTuple):
    """A block's input, the kernels that are convolved with it, and the gradients of what comes out."""

    x: Tensor
    weights: list[Tensor]
    geometry: Layout
    grads: list[Tensor]

    def run(self) -> None:
        """Forward and backward."""
        outputs = [convolve(self.x, weight, self.geometry) for weight in self.weights]
        wanted = [*self.weights, *([self.x] if self.x.requires_grad else [])]
        torch.autograd.grad(outputs, wanted, self.grads)


@torch.no_grad()
def convolutions_alone(net: nn.Module, x: Tensor, dtype: torch.dtype) -> Callable[[], None]:
    """A call that runs every block's statistic convolutions and its merged one forward and backward.

    Inputs are those of the blocks in ``net`` (FP) for the images ``x``. As in training, images want no gradient.
    """
    layers: list[_Layer] = []

    def note(block: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(block, Block)
        asked = _Asked()
        merged = block.merged(asked).weight
        weights = [weight.detach().to(dtype).requires_grad_() for weight in (*asked.kernels, merged)]
        own = inputs[0].detach().to(dtype).requires_grad_(bool(layers))
        grads = [torch.ones_like(convolve(own, weight, block.geometry)) for weight in weights]
        layers.append(_Layer(own, weights, block.geometry, grads))

    hooks = [block.register_forward_pre_hook(note) for block in net.modules() if isinstance(block, Block)]
    try:
        net.eval()(x)
    finally:
        for hook in hooks:
            hook.remove()

    def run() -> None:
        for layer in layers:
            layer.run()

    return run
