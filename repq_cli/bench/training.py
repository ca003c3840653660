"""Training steps as things to time: the project's own update of a net on one fixed batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repq_cli.bench.convolutions import convolutions_alone
from repq_cli.bench.peers import LSQ_PARTS, rebuilt
from repq_cli.bench.steps import OURS, PLAIN, Precision, Step
from repq_cli.devices import is_waited_for
from repq_cli.models.repvgg import RepVGG
from repq_cli.modes.calibrate import calibrate
from repq_cli.modes.compose import compose
from repq_cli.modes.options import ModeOptions
from repq_cli.quant.options import QuantOptions
from repq_cli.reparam.block import MakeBlock, merge_first
from repq_cli.train.arithmetic import Arithmetic
from repq_cli.train.compiled import CompiledForward, alone
from repq_cli.train.engine import Task, Update
from repq_cli.train.optim import leaves_out_steps, make_optimizer
from repq_cli.train.options import OptimOptions

RATE = 1e-3  # of learning: so small that the same batch, again and again, leads to nothing extreme
CLASSES_OF_STACK = 10


def stack(make_block: MakeBlock, in_channels: int, num_classes: int, width: float = 1.0) -> nn.Module:
    """Nine 3x3 blocks in a chain, three each of 32, 64 and 128 channels, where sides are halved, and a classifier."""
    channels = [max(1, round(width * base)) for base in (32, 64, 128) for _ in range(3)]
    return RepVGG(make_block, [in_channels, *channels], [1, 1, 1, 2, 1, 1, 2, 1, 1], num_classes, [len(channels)])


@dataclass(frozen=True)
class Subject:
    """What steps of one model train: how to build it with the blocks of each ``rep``, on which batch, for what.

    quant, mode: the options behind the names of a step's quantizer, and of its mode and quantizer.
    arithmetic: how steps of a precision compute.
    """

    make: Mapping[str, Callable[[], nn.Module]]
    batch: tuple[Tensor, Tensor]
    task: Task
    optim: OptimOptions
    quant: Callable[[str], QuantOptions]
    mode: Callable[[str, str], ModeOptions]
    arithmetic: Callable[[Precision], Arithmetic]


class Trained:
    """A step that can be carried out again and again. ``net``: the one that it trains."""

    def __init__(self, step: Step, subject: Subject) -> None:
        x, _ = subject.batch
        torch.manual_seed(0)
        fp_net = _settled(subject.make[step.rep]().to(x.device), x)
        arithmetic = subject.arithmetic(step.precision)
        if step.stage == "convolutions":
            self.net = fp_net
            arithmetic.lay_out(fp_net, training=True)
            run: Callable[[], object] = convolutions_alone(fp_net, arithmetic.images(x), arithmetic.dtype or x.dtype)
        else:
            merge_first(fp_net)
            self.net = (fp_net if step.stage == "fp" else _quantized(step, fp_net, subject)).train()
            run = _loop_body(step, self.net, subject, arithmetic)
        self.run = run


def _settled(net: nn.Module, x: Tensor) -> nn.Module:
    """``net`` with running statistics of ``x``: by those of a fresh one activations vanish."""
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        net.train()(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return net


def _quantized(step: Step, fp_net: nn.Module, subject: Subject) -> nn.Module:
    """As the runner makes it of an FP net; for a peer, of our Plain QAT net's widths and steps."""
    x, _ = subject.batch
    quant, mode = subject.quant(step.quant), subject.mode(step.mode, step.quant)
    start = mode.rule.starting_net(fp_net, [x], mode)
    ours = compose(start, mode, quant)
    calibrate(ours, x, quant.init, start)
    if step.by == OURS:
        return ours
    assert step.mode == PLAIN
    if step.by == "lsq":
        return rebuilt(fp_net, ours, LSQ_PARTS)
    from repq_cli.bench.brevitas_parts import BREVITAS_PARTS

    return rebuilt(fp_net, ours, BREVITAS_PARTS)


def _loop_body(step: Step, net: nn.Module, subject: Subject, arithmetic: Arithmetic) -> Callable[[], object]:
    arithmetic.lay_out(net, training=True)
    optimizer = make_optimizer(net, subject.optim, RATE)

    forward: Callable[[Tensor], Tensor] | None = None
    if step.compiled:  # a peer's graph may break
        forward = CompiledForward(net, step.stage) if step.by == OURS else torch.compile(alone(net))
    task, clip = subject.task, subject.optim.clip_norm
    update = Update(net, task, optimizer, clip, arithmetic=arithmetic, forward=forward)
    waits = not (is_waited_for(subject.batch[0].device) and leaves_out_steps(optimizer))  # as a stage decides it
    return lambda: (update.seen if waits else update.unseen)(subject.batch, RATE)
