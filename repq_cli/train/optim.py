"""Optimiser groups and learning-rate schedule."""

from __future__ import annotations

import inspect
import math
from fnmatch import fnmatch

import torch
from torch import nn

from repq_cli.quant.latent_weights import undecayed_latent_weights
from repq_cli.quant.quantizer import Quantizer
from repq_cli.reparam.repvgg import repvgg_blocks
from repq_cli.train.options import OptimOptions, ScheduleOptions


class _Bare(torch.optim.Optimizer):
    """Without the wrappers that keep torch's compiler out of an optimiser: they import it, over a second of a start."""

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)


class SGD(_Bare, torch.optim.SGD):
    """torch's."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


class AdamW(_Bare, torch.optim.AdamW):
    """torch's."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


STEPS = "steps"  # marks a group of quantizers' steps alone
FUSED_ON = {"cpu", "cuda", "mps", "xpu"}  # kinds of devices with fused SGD and AdamW


def parameter_groups(net: nn.Module, options: OptimOptions, steps_apart: bool = False) -> list[dict[str, object]]:
    """Parameters by weight decay and learning rate.

    Kernels decay; batch norm, biases and whatever else has one dimension only where ``decay_also`` names it; the steps
    of quantizers never, nor kernels that ``custom_l2`` penalises or whose quantizer reads nothing but their signs.
    steps_apart: the steps' group holds nothing else, whatever its rate; see ``stop_steps``.
    """
    steps = {id(step) for module in net.modules() if isinstance(module, Quantizer) for step in module.parameters()}
    exempt = steps | {id(weight) for weight in undecayed_latent_weights(net)}
    if options.custom_l2:
        exempt |= {id(kernel) for block in repvgg_blocks(net) for kernel in block.penalised()}
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    groups |= {(options.weight_decay, 1.0, False): [], (0.0, 1.0, False): []}
    for name, parameter in net.named_parameters():
        named = any(fnmatch(name, pattern) for pattern in options.decay_also)
        decays = (parameter.dim() > 1 or named) and id(parameter) not in exempt
        is_step = id(parameter) in steps
        rate = options.step_lr if is_step else options.bias_lr if name.rpartition(".")[2] == "bias" else 1.0
        groups.setdefault((options.weight_decay if decays else 0.0, rate, is_step and steps_apart), []).append(
            parameter
        )
    return [
        {"params": parameters, "weight_decay": decay, "lr_factor": rate} | ({STEPS: True} if apart else {})
        for (decay, rate, apart), parameters in groups.items()
        if parameters
    ]


def stop_steps(optimizer: torch.optim.Optimizer) -> None:
    """From now on quantizers' steps stay as they are: a rate of 0, which no momentum gets past."""
    for group in optimizer.param_groups:
        if group.get(STEPS):
            group["lr_factor"] = 0.0


def patterns_without_match(net: nn.Module, patterns: list[str]) -> list[str]:
    """Those of ``decay_also`` that name no parameter."""
    names = [name for name, _ in net.named_parameters()]
    return [pattern for pattern in patterns if not any(fnmatch(name, pattern) for name in names)]


def make_optimizer(
    net: nn.Module, options: OptimOptions, lr: float, steps_apart: bool = False
) -> torch.optim.Optimizer:
    """SGD with momentum, or AdamW; one call for all parameters of a group, where the device has that."""
    groups = parameter_groups(net, options, steps_apart)
    fused = {parameter.device.type for parameter in net.parameters()} <= FUSED_ON
    if options.name == "adamw":
        return AdamW(groups, lr, betas=(float(options.betas[0]), float(options.betas[1])), fused=fused)
    nesterov = options.nesterov and options.momentum > 0
    optimizer = SGD(groups, lr, momentum=options.momentum, nesterov=nesterov, fused=fused)
    if options.momentum:
        for parameter in net.parameters():
            if parameter.requires_grad:  # torch's own first buffers are no numbers yet where the first step is left out
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def leaves_out_steps(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it leaves out a step by itself, with nobody waiting; what a checkpoint brings may be of an older kind."""
    return all(group["fused"] for group in optimizer.param_groups)


def learning_rate(schedule: ScheduleOptions, peak: float, step: int, steps: int, steps_per_epoch: int) -> float:
    """The rate of training step ``step`` (from 0) of ``steps``.

    >>> half_way = learning_rate(ScheduleOptions("cosine", 0), 0.1, 50, 100, 10)
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
