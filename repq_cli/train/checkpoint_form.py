"""What checkpoints must hold, of which kinds and shapes: a seal that fits may stand behind anything.

Whoever reads a checkpoint asks first, so that what is not as it should be is one sentence and no traceback, and nothing
is half taken over.
"""

from __future__ import annotations

from numbers import Real
from typing import Annotated, Any, Literal, TypedDict, is_typeddict

import torch
from torch import Tensor, nn

from repq_cli.bounds import Range
from repq_cli.typecheck import annotations_of, legal

Count = Annotated[int, Range(0)]
State = dict[str, Tensor]


class NetForm(TypedDict):
    """Of every checkpoint."""

    net: State


class TrainedForm(NetForm, total=False):
    """Of fp.pt and best.pt."""

    stage: str
    signature: dict[str, str]
    epoch: Count
    score: Real | None


class TotalsForm(TypedDict, total=False):
    """Of ``EpochTotals``."""

    steps: Count
    loss: Real
    score: Real
    identical: Count


class OptimizerForm(TypedDict):
    """Of torch's optimisers: what they keep of each parameter, by its number, and the groups with their options."""

    state: dict[int, dict[str, Tensor | None]]
    param_groups: list[dict[str, Any]]


class _Training(TypedDict):
    stage: Literal["fp", "qat"]
    net: State
    signature: dict[str, str]
    epoch: Count
    totals: TotalsForm
    optimizer: OptimizerForm
    best_score: Real | None
    best_epoch: Count
    seconds: Real
    earlier: dict[str, Real | None]
    step_seconds: list[Real]
    metrics_bytes: Count


class TrainingForm(_Training, total=False):
    """Of last.pt and previous.pt; what earlier versions did not write may be missing."""

    better_epoch: Count
    input_seconds: list[Real]
    scaler: dict[str, Any]
    fp_key: str
    metrics_sha256: str | None


# What an optimiser keeps of each parameter, by one of the options of its groups.
KEPT = {"momentum": {"momentum_buffer"}, "betas": {"step", "exp_avg", "exp_avg_sq"}}


def wrong_in(form: type, tree: dict[str, Any]) -> str | None:
    """What is missing in ``tree``, or of another kind than the ``form`` says; None where all is as it should be.

    >>> wrong_in(TrainedForm, {"net": {}, "stage": 3})
    "its 'stage' is not what belongs there"
    >>> wrong_in(TrainedForm, {"stage": "fp"})
    "it has no 'net'"
    """
    for key, kind in annotations_of(form).items():
        inner = None
        if key not in tree:
            if key in form.__required_keys__:  # type: ignore[attr-defined]
                return f"it has no '{key}'"
        elif is_typeddict(kind):
            ours = isinstance(tree[key], dict) and tree[key].keys() <= annotations_of(kind).keys()
            inner = wrong_in(kind, tree[key]) if ours else "is another"
        elif not legal(kind, tree[key]):
            inner = "is of another kind"
        elif kind == State:
            inner = next((name for name, tensor in tree[key].items() if not _is_plain(tensor)), None)
        if inner is not None:
            return f"its '{key}' is not what belongs there"
    return None


def misfit(content: dict[str, Any], net: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> str | None:
    """What in a checkpoint of the right form is not of this net, or of its optimiser; None where all fits."""
    own, saved = net.state_dict(), content["net"]
    if own.keys() != saved.keys():
        name = sorted(own.keys() ^ saved.keys())[0]
        return f"its net {'lacks' if name in own else 'has'} '{name}'"
    for name, tensor in own.items():
        if tensor.shape != saved[name].shape or tensor.is_floating_point() != saved[name].is_floating_point():
            return f"its '{name}' is {_shape(saved[name])}, and the net's is {_shape(tensor)}"
    if optimizer is not None and not _optimizer_fits(content["optimizer"], optimizer):
        return "the state of its optimiser is not of this net's"
    return None


def _optimizer_fits(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> bool:
    """Whether the groups have the same parameters and options, and the state their shapes."""
    own, groups = optimizer.state_dict()["param_groups"], saved["param_groups"]
    if [group.get("params") for group in groups] != [group["params"] for group in own]:
        return False
    if not all(_is_option(group.get(key), own[i][key]) for i, group in enumerate(groups) for key in own[i]):
        return False
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names = next(names for option, names in KEPT.items() if option in own[0])
    return all(
        number in range(len(parameters))
        and all(name in names and _is_kept(name, kept[name], parameters[number]) for name in kept)
        and ("betas" not in own[0] or len(kept) == len(names))  # SGD makes its buffer where there is none
        for number, kept in saved["state"].items()
    )


def _is_kept(name: str, tensor: Tensor | None, parameter: Tensor) -> bool:
    if tensor is None:
        return name == "momentum_buffer"  # torch's own before its first step
    return _is_plain(tensor) and tensor.shape == (() if name == "step" else parameter.shape)


def _is_option(saved: object, own: object) -> bool:
    """Whether a value is of the kind of ours; switches differ between versions of torch, which knows what to do."""
    if own is None or isinstance(own, bool):
        return saved is None or isinstance(saved, bool)
    if isinstance(own, tuple | list):
        values = list(saved) if isinstance(saved, tuple | list) else []
        return len(values) == len(own) and all(map(_is_option, values, own))
    return isinstance(saved, int | float) and not isinstance(saved, bool)


def _is_plain(tensor: Tensor) -> bool:
    """Whether it holds finite numbers, one for each place, in this machine's memory."""
    is_here = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    return is_here and bool(torch.isfinite(tensor).all())


def _shape(tensor: Tensor) -> str:
    return f"{'x'.join(map(str, tensor.shape)) or 'a number'} of {str(tensor.dtype).removeprefix('torch.')}"
