"""From a trained network to a quantization-aware one, and what a training loop of one's own owes it."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from repq_cli.answers import tensors
from repq_cli.bounds import Range
from repq_cli.combinations import COMBINATIONS
from repq_cli.deploy.freeze import unsupported
from repq_cli.deploy.tracing import together
from repq_cli.devices import full_float32
from repq_cli.errors import CheckError, ConfigError
from repq_cli.library.foreign import own
from repq_cli.library.given import Batches, inputs_of, require_fit, typed
from repq_cli.modes import compose
from repq_cli.modes.auto import resolve_mode
from repq_cli.modes.calibrate import calibrate
from repq_cli.modes.catalogue import AUTO, MODES
from repq_cli.modes.options import ModeOptions
from repq_cli.quant.float_leaf import is_kept
from repq_cli.quant.latent_weights import clip_latent_weights
from repq_cli.quant.options import QuantOptions
from repq_cli.quant.quantizer import Quantizer
from repq_cli.reparam.block import Block, merge_first
from repq_cli.reparam.branch import ConvBranch
from repq_cli.reparam.transposed import LAYERS
from repq_cli.train import optim
from repq_cli.train.options import OptimOptions
from repq_cli.typecheck import annotations_of, mistake

MERGE_TOLERANCE = 1e-4  # of float32, relative to the largest output
STATISTICS_BATCHES = 16  # at most so many are read where a mode restates batch-norm statistics


@typed
@torch.no_grad()
def merge(net: nn.Module, example: Tensor) -> nn.Module:
    """A copy of ``net`` in eval mode with every block as one convolution: of the same class, if it is of repq's blocks.

    Any other network is one of blocks first, by ``library/foreign.py``: its linear regions.
    example  a batch of inputs ``[B, C, H, W]`` on the net's device, on which both are compared

    Raises ConfigError for a network that cannot be followed, CheckError where outputs differ by more than rounding.
    """
    require_fit(net, example)
    net, original = own(net, example).net, net
    merged = copy.deepcopy(net).eval()
    for name, block in list(merged.named_modules()):
        if isinstance(block, Block):
            branch = ConvBranch(block.geometry, batch_norm=False, bias=True).to(next(block.parameters()))
            branch.conv.load_state_dict(block.to_conv().state_dict())
            merged.set_submodule(name, Block(block.geometry, {"conv": branch}, block.activation, "conv"))
    merged.eval()
    branches = copy.deepcopy(original).eval()
    merge_first(branches, False)
    with full_float32():
        expected, got = tensors(branches(example)), tensors(merged(example))
    scale = max(1.0, *(tensor.abs().max().item() for tensor in expected))
    difference = max(((a - b).abs().max() for a, b in zip(got, expected, strict=True)), key=_nan_first).item()
    if not difference <= MERGE_TOLERANCE * scale:
        raise CheckError(
            f"Merging changed the outputs by {difference:g}, more than the {MERGE_TOLERANCE * scale:g} that rounding "
            f"explains: the net has overflowed or magnifies rounding; compare it in float64 (net.double())."
        )
    return merged


@typed
def prepare(
    net: nn.Module,
    example: Tensor,
    *,
    mode: str = AUTO,
    weight_bits: int = 8,
    act_bits: int = 8,
    batches: Batches | None = None,
    quant: QuantOptions | None = None,
    keep_float: Sequence[str] = (),
) -> nn.Module:
    """A quantization-aware copy of ``net``, on its device and in its dtype, in training mode.

    example      a batch of inputs ``[B, C, H, W]``
    mode         ``plain``, ``merged``, ``repq``, ``repq_bn``, ``repq_bnest``, …; ``auto`` goes by bits and batch norm
    batches      inputs, or tuples that start with them, of the training data: batch-norm statistics are restated on up
                 to 16 where the mode wants it, and steps start at least squared error (MinError) on the first.
                 None: steps stay at 1, for a state dict that is loaded next
    quant        all other choices
    keep_float   names or patterns of modules that stay in floating point

    Raises ConfigError, before anything is computed, for a mode or quantizer that does not fit the network, and for
    layers that would stay in floating point unasked. Source: arXiv 2311.05317.
    """
    require_fit(net, example)
    options = quant_options(quant, weight_bits, act_bits)
    net, kept = own(net, example, keep_float)
    require_nothing_left(net, kept)
    chosen = mode_options(net, mode, options)
    composed = compose.compose(chosen.rule.shaped_net(net, [example], chosen), chosen, options, kept)
    require_forms(composed, example, kept)
    if batches is None:
        return composed.train()
    some = itertools.islice(batches, STATISTICS_BATCHES)
    listed = [inputs_of(batch, example.shape[1], example.dtype).to(example.device) for batch in some]
    if not listed:
        raise ConfigError("batches is empty: give some of the training data, or None for a state dict to be loaded.")
    start = chosen.rule.starting_net(net, listed, chosen)
    composed = compose.compose(start, chosen, options, kept)
    calibrate(composed, listed[0], options.init, start)
    return composed.train()


@typed
def parameter_groups(qat: nn.Module, weight_decay: Annotated[float, Range(0)] = 0.0) -> list[dict[str, Any]]:
    """Groups for an optimiser of torch: kernels decay; batch norm, biases and quantizers' steps must not."""
    _require_quantized(qat, "parameter_groups")
    groups = optim.parameter_groups(qat, OptimOptions(name="sgd", weight_decay=weight_decay, label_smoothing=0.0))
    return [{key: group[key] for key in ("params", "weight_decay")} for group in groups]


@typed
def after_step(qat: nn.Module) -> None:
    """What a loop owes the quantizers after every ``optimizer.step()``: float weights stay within their bounds."""
    _require_quantized(qat, "after_step")
    clip_latent_weights(qat)


@typed
def freeze_statistics(qat: nn.Module) -> None:
    """From now on train with the running statistics of batch norms as they are."""
    _require_quantized(qat, "freeze_statistics")
    compose.freeze_statistics(qat)


def quant_options(quant: QuantOptions | None, weight_bits: int, act_bits: int) -> QuantOptions:
    """All choices together. Raises ConfigError with every problem of a value."""
    asked = quant or QuantOptions()
    default = QuantOptions()
    for key, bits in (("weight_bits", weight_bits), ("act_bits", act_bits)):
        if getattr(asked, key) not in (getattr(default, key), bits):
            raise ConfigError(
                f"{key}={bits} and quant.{key}={getattr(asked, key)} disagree: give it once, as an argument of prepare."
            )
    options = replace(asked, weight_bits=weight_bits, act_bits=act_bits)  # type: ignore[arg-type]  # checked below
    annotations = annotations_of(QuantOptions)
    for field in fields(options):
        wrong = mistake(annotations[field.name], getattr(options, field.name))
        if wrong:
            raise ConfigError(f"{field.name}={getattr(options, field.name)} {wrong}.".replace("?.", "?"))
    return options


def mode_options(net: nn.Module, mode: str, quant: QuantOptions) -> ModeOptions:
    """The mode that ``mode`` names for this network. Raises ConfigError where it does not fit."""
    blocks = _blocks(net)
    kinds = sorted({block.kind for block in blocks} - {"conv"})
    rep, batch_norm = kinds[0] if kinds else "none", any(block.has_batch_norm for block in blocks)
    name = resolve_mode(mode, rep, batch_norm, quant.weight_bits)
    if name not in MODES:
        raise ConfigError(f"mode={mode} must be one of {', '.join([AUTO, *MODES])}.")
    options = ModeOptions(name)
    problem = options.rule.misfit_of_block(rep, batch_norm)
    if problem is None and not options.rule.uses_branches and kinds:
        problem = f"is for ordinary convolutions, and this network has blocks of {kinds[0]}: build it with rep='none'"
    if problem is not None:
        raise ConfigError(f"mode={name} {problem}.")
    config = {"quant": quant, "mode": options}
    rules = [(sections, rule) for sections, rule in COMBINATIONS if set(sections) <= set(config)]
    problems = [str(found) for sections, rule in rules for found in rule(*map(config.get, sections))]
    if problems:
        raise ConfigError(" ".join(problems))
    return options


def _blocks(net: nn.Module) -> list[Block]:
    return [module for module in net.modules() if isinstance(module, Block)]


def unblocked_layers(net: nn.Module) -> list[str]:
    """Layers with weights that no block holds and no mode quantizes."""
    inside = {part for layer in net.modules() if isinstance(layer, LAYERS) for part in layer.modules()}
    kinds = (nn.modules.conv._ConvNd, nn.Bilinear, nn.MultiheadAttention)
    return [name for name, part in net.named_modules() if isinstance(part, kinds) and part not in inside]


def require_nothing_left(net: nn.Module, keep_float: Sequence[str]) -> None:
    """ConfigError for layers outside blocks, which would stay float without a word."""
    left = [name for name in unblocked_layers(net) if not is_kept(name, keep_float)]
    if left:
        raise ConfigError(
            f"{', '.join(left)} would stay in floating point, being no block of repq's: make a block of it, or name it "
            f"in keep_float."
        )


def require_forms(composed: nn.Module, example: Tensor, kept: Sequence[str]) -> None:
    """ConfigError, with all of them, for operations that could not be shipped, those that are kept aside."""
    refusals = unsupported(composed, example.shape[1:])
    found = [refusal.reason for refusal in refusals if not is_kept(refusal.name, kept)]
    if found:
        raise ConfigError(together(found))


def _require_quantized(net: nn.Module, function: str) -> None:
    if not any(isinstance(module, Quantizer) for module in net.modules()):
        raise ConfigError(f"repq.{function} takes a network that repq.prepare has made, and this is none.")


def _nan_first(number: Tensor) -> float:
    """A key by which the largest is NaN where there is one."""
    return math.inf if number.isnan() else number.item()
