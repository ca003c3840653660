"""Which layer of a finished run hurts: its numbers, and the task's metric with only some quantizers at work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from repq_cli.answers import tensors
from repq_cli.data.base import Batch, Evaluation, Split
from repq_cli.data.image_files import Subset
from repq_cli.data.pictures import Pictures
from repq_cli.devices import in_float64
from repq_cli.modes.partly_quantized import quantizing_only
from repq_cli.modes.weights import branch_kernels
from repq_cli.quant.frozen_layers import frozen_layers
from repq_cli.quant.layers import QuantLayer, quant_layers, quantizers_in_layers
from repq_cli.quant.measures import Noise, decibels, quantization_noise, range_ratio
from repq_cli.quant.quantizer import Quantizer, quantizers
from repq_cli.quant.split import SplitLSQ
from repq_cli.quant.wiring import input_quantizers
from repq_cli.reparam.block import Block
from repq_cli.train.engine import EVAL_BATCH, Task, mean_score

Numbers = dict[str, Any]


def some_of(split: Evaluation, count: int) -> Evaluation:
    """At most ``count`` of the images, evenly spread over all of them and in an order drawn once for all.

    Many splits are sorted by class, and added batch norms take their statistics from the first batch.
    """
    count = min(count, len(split))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    indices = order * len(split) // count
    if isinstance(split, Split):
        return Split(Subset(split.images, indices), split.labels[indices], split.info)
    assert isinstance(split, Pictures)
    return Pictures([split.pairs[index] for index in indices.tolist()], split.upscaling)


@torch.no_grad()
def diagnose(
    net: nn.Module,
    fp: nn.Module,
    blocks: Mapping[str, Block],
    images: Evaluation,
    task: Task,
    device: torch.device,
    show_bar: bool = False,
) -> Numbers:
    """The numbers of diagnosis.json: of the network as a whole, its layers in their order, and its other tensors.

    net     the quantization-aware network, ``fp`` the one that it was composed of
    blocks  by layer, whose branches its kernel was merged from
    images  are read once and kept, since the network runs over them twice for every layer: with only this one
            quantized (``alone``), and with all others (``spared``)
    """
    net, fp = net.to(device).eval(), fp.to(device).eval()
    batches = list(images.batches(EVAL_BATCH, device))
    reads, layers, active = input_quantizers(net), quant_layers(net), quantizers(net)
    of_weights = {name for name, quantizer in active.items() if quantizer in quantizers_in_layers(net)}
    of_tensors = [name for name in active if name not in of_weights]
    alone = {name: {f"{name}.quantizer", reads.get(name, "")} & set(active) for name in layers}
    alone = {name: kept for name, kept in alone.items() if kept}
    settings = {"weights": of_weights, "activations": set(of_tensors), "everything": set(active)}

    bar = tqdm(total=2 * len(alone) + 5, desc="diagnose", unit="pass", leave=False, disable=not show_bar)
    with bar:
        measured = _Measured(net, batches, task, bar.update)
        network = {"fp": mean_score(_score(fp, batches, task)[0]).item(), "nothing": mean_score(measured.scores).item()}
        bar.update(2)
        whole = {name: measured.with_only(kept) for name, kept in settings.items()}
        noises = _tensor_noise(net, of_tensors, batches)
        found = [
            _layer(name, layers[name], blocks.get(name), name in _edges(net))
            | {"input": _tensor(reads[name], active, noises) if name in reads else None}
            | {"alone": measured.with_only(kept), "spared": measured.with_only(set(active) - kept)}
            for name, kept in alone.items()
        ]
    others = [_tensor(name, active, noises) for name in of_tensors if name not in reads.values()]
    return {"network": network | whole, "layers": found, "other_tensors": others}


class _Measured:
    """The task's metric with only some quantizers at work, and how far the outputs are from those with none."""

    def __init__(self, net: nn.Module, batches: Sequence[Batch], task: Task, done: Callable[[], object]) -> None:
        self.net, self.batches, self.task, self.done = net, batches, task, done
        with quantizing_only(net, (), batches[0][0]):
            self.scores, self.outputs = _score(net, batches, task)

    def with_only(self, kept: set[str]) -> Numbers:
        """``value`` of the metric; ``drop`` from that without quantization; ``output_sqnr`` against its outputs, dB.

        ``drop`` is that of the images whose score is finite both times: the others have no place in either mean.
        """
        with quantizing_only(self.net, kept, self.batches[0][0]):
            scores, outputs = _score(self.net, self.batches, self.task)
        self.done()
        pairs = list(zip(outputs, self.outputs, strict=True))
        signal = sum(in_float64(expected).square().sum().item() for _, expected in pairs)
        noise = sum(in_float64(y - expected).square().sum().item() for y, expected in pairs)
        both = scores.isfinite() & self.scores.isfinite()
        change = (self.scores[both].mean() - scores[both].mean()).item() if both.any() else 0.0
        drop = change if self.task.higher_is_better else -change
        return {"value": mean_score(scores).item(), "drop": drop, "output_sqnr": decibels(signal, noise)}


def _score(net: nn.Module, batches: Sequence[Batch], task: Task) -> tuple[Tensor, list[Tensor]]:
    with frozen_layers(net):
        outputs = [net(x) for x, _ in batches]
    scores = [task.scores(y, targets) for y, (_, targets) in zip(outputs, batches, strict=True)]
    return in_float64(torch.cat(scores)), tensors(outputs)


def _tensor_noise(net: nn.Module, names: Sequence[str], batches: Sequence[Batch]) -> dict[str, Noise]:
    """What each activation quantizer does to its tensor, with everything quantized before it."""
    found: dict[str, Noise] = {}

    def measure(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add(quantizer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            assert isinstance(quantizer, Quantizer)
            noise = quantization_noise(inputs[0], quantizer)
            found[name] = found[name].plus(noise) if name in found else noise

        return add

    hooks = [net.get_submodule(name).register_forward_pre_hook(measure(name)) for name in names]
    try:
        with frozen_layers(net):
            for x, _ in batches:
                net(x)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _edges(net: nn.Module) -> frozenset[str]:
    return net.edges()  # type: ignore[operator]


def _layer(name: str, layer: QuantLayer, block: Block | None, edge: bool) -> Numbers:
    """A layer's weights; absent where they are float."""
    quantizer = layer.quantizer
    if quantizer.bits == 32:
        return {"name": name, "edge": edge}
    weight = layer.merged_weight()
    grid = quantizer.grid(weight)
    per_channel = grid.step.numel() > 1
    kernels = branch_kernels(block) if block is not None else {}
    # A split identity neither clips the others nor coarsens them.
    merged = weight.masked_fill(quantizer.split, 0) if isinstance(quantizer, SplitLSQ) else weight
    ratios = {part: range_ratio(kernel, per_channel) for part, kernel in {**kernels, "merged": merged}.items()}
    named = {part: None if ratio is None else ratio._asdict() for part, ratio in ratios.items()}
    return {
        "name": name,
        "edge": edge,
        "range_ratio": {"merged": named.pop("merged"), "branches": named},
        "weights": _numbers(quantizer, quantization_noise(weight, quantizer, grid, per_channel=True), grid.step),
    }


def _tensor(name: str, active: Mapping[str, Quantizer], noises: Mapping[str, Noise]) -> Numbers:
    """An activation tensor."""
    quantizer = active[name]
    return {"tensor": name, **_numbers(quantizer, noises[name], quantizer.grid(torch.zeros(())).step)}


def _numbers(quantizer: Quantizer, noise: Noise, step: Tensor) -> Numbers:
    """``step``: geometric mean over channels, smallest, largest. Shares are of 1."""
    return {
        "bits": quantizer.bits,
        "signed": quantizer.signed,
        "sqnr": noise.sqnr,
        "clipped": None if noise.clipped is None else noise.clipped / noise.total,
        "zero": noise.zeros / noise.total,
        "step": {"mean": step.log().mean().exp().item(), "min": step.min().item(), "max": step.max().item()},
    }
