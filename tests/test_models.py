"""Parameter, MAC and bit-operation counts of the papers' networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from repq_cli.deploy.cost import cost, parameter_count
from repq_cli.deploy.freeze import freeze
from repq_cli.models.repvgg import RepVGG, repvgg
from repq_cli.modes.compose import compose
from repq_cli.modes.options import ModeOptions
from repq_cli.quant.options import QuantOptions
from repq_cli.reparam.plain import plain_block
from repq_cli.reparam.repvgg import repvgg_block

A0 = {"blocks": [2, 4, 14, 1], "widths": [0.75, 0.75, 0.75, 2.5], "strides": [2] * 5}
B0 = {"blocks": [4, 6, 16, 1], "widths": [1.0, 1.0, 1.0, 2.5], "strides": [2] * 5}


def parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("shape", "training", "merged", "gmacs", "gbops"),
    [
        (A0, 9_108_968, 8_309_384, 1.361451, {8: 87.1, 4: 21.8}),
        (B0, 15_817_960, 14_339_048, 3.057601, {8: 195.7, 4: 48.9}),
    ],
    ids=["A0", "B0"],
)
def test_counts_of_repvgg(
    shape: dict[str, list[int]], training: int, merged: int, gmacs: float, gbops: dict[int, float]
) -> None:
    net = repvgg(repvgg_block, 3, 1000, **shape)  # type: ignore[arg-type]
    assert parameters(net) == training
    for bits, expected in gbops.items():
        options = QuantOptions(weight_bits=bits, act_bits=bits, first_last="same")  # type: ignore[arg-type]
        deployed = freeze(compose(net, ModeOptions("merged"), options), {"input_shape": [3, 224, 224]})
        assert parameter_count(deployed) == merged
        macs, bops = cost(deployed)
        assert macs / 1e9 == pytest.approx(gmacs, abs=5e-7)
        assert bops / 1e9 == pytest.approx(expected, abs=0.05)


def test_first_and_last_layer_at_8_bit_cost_what_they_should() -> None:
    net = repvgg(repvgg_block, 3, 1000, **B0)  # type: ignore[arg-type]
    options = QuantOptions(weight_bits=4, act_bits=4)
    deployed = freeze(compose(net, ModeOptions("merged"), options), {"input_shape": [3, 224, 224]})
    assert cost(deployed).bops / 1e9 == pytest.approx(50.0, abs=0.05)


def test_repvgg_has_an_identity_except_at_the_start_of_stages() -> None:
    net = repvgg(repvgg_block, 3, 10, **A0)  # type: ignore[arg-type]
    with_identity = sum("identity" in block.branches for block in net.blocks)
    assert (len(net.blocks), with_identity) == (22, 17)


@pytest.mark.parametrize("width", [0.25, 0.5, 2.0])
def test_width_multiplies_every_stage(width: float) -> None:
    net = repvgg(plain_block, 1, 10, **A0, width=width)  # type: ignore[arg-type]
    assert net.classifier.in_features == int(1280 * width)
    assert net(torch.randn(2, 1, 32, 32)).shape == (2, 10)


def test_strides_set_the_size_of_the_last_map() -> None:
    net: RepVGG = repvgg(plain_block, 1, 10, [1] * 4, [0.125] * 4, [1, 1, 2, 2, 2])
    x = torch.randn(1, 1, 32, 32)
    for tap, block in zip(net.taps, net.blocks, strict=True):
        x = block(tap(x), x)
    assert x.shape[2:] == (4, 4)


@pytest.mark.parametrize("change", [{"blocks": [1, 2]}, {"strides": [2, 2]}, {"widths": [1.0]}, {"blocks": []}])
def test_impossible_shapes_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="model"):
        repvgg(plain_block, 3, 10, **(A0 | change))  # type: ignore[arg-type]
