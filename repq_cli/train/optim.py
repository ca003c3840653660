"""Optimiser groups and learning-rate schedule."""

from __future__ import annotations

import math

import torch
from torch import nn

from repq_cli.train.options import OptimOptions, ScheduleOptions


def parameter_groups(net: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Kernels with weight decay; batch norm, biases and quantizer steps (all of at most one dimension) without."""
    parameters = list(net.parameters())
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]


def make_optimizer(net: nn.Module, options: OptimOptions, lr: float) -> torch.optim.Optimizer:
    """SGD with momentum, or AdamW."""
    groups = parameter_groups(net, options.weight_decay)
    if options.name == "adamw":
        return torch.optim.AdamW(groups, lr, betas=options.betas)
    nesterov = options.nesterov and options.momentum > 0
    return torch.optim.SGD(groups, lr, momentum=options.momentum, nesterov=nesterov)


def learning_rate(schedule: ScheduleOptions, peak: float, step: int, steps: int, steps_per_epoch: int) -> float:
    """The rate of training step ``step`` (from 0) of ``steps``.

    >>> half_way = learning_rate(ScheduleOptions(), 0.1, 50, 100, 10)
    >>> round(half_way, 4)
    0.05
    """
    warmup = min(schedule.warmup_epochs * steps_per_epoch, steps)
    if step < warmup:
        return peak * (step + 1) / (math.ceil(warmup) + 1)
    if schedule.name == "constant":
        return peak
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (schedule.final_lr + (1 - schedule.final_lr) * 0.5 * (1 + math.cos(math.pi * progress)))
