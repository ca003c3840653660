"""The deployed network equals the trained one exactly, its codes are integers in range, and its files are stable."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import seal, tiny_net
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from repq_cli.deploy.check import compare
from repq_cli.deploy.cost import parameter_count
from repq_cli.deploy.freeze import freeze
from repq_cli.deploy.network import DeployedNet, size_on_disk
from repq_cli.deploy.packing import pack, packed_bits, unpack
from repq_cli.errors import CheckError, DataError
from repq_cli.models.repvgg import repvgg
from repq_cli.modes.calibrate import calibrate
from repq_cli.modes.compose import compose
from repq_cli.modes.options import ModeOptions
from repq_cli.modes.restated_norms import with_reinserted_norms
from repq_cli.quant.functional import integer_range
from repq_cli.quant.options import QuantOptions
from repq_cli.reparam.plain import plain_block
from repq_cli.reparam.repvgg import repvgg_block
from repq_cli.tasks.classification import Classification

DESCRIPTION = {"input_shape": [3, 12, 11]}
AGREEMENT = Classification().agreement


def trained(mode: ModeOptions, quant: QuantOptions) -> nn.Module:
    """A composed network after a few steps of training."""
    net = tiny_net(plain_block if mode.name == "plain" else repvgg_block)
    batches = [torch.randn(8, 3, 12, 11) for _ in range(3)]
    if mode.merged_bn == "reinsert":
        net = with_reinserted_norms(net, batches)
    composed = compose(net, mode, quant)
    calibrate(composed, batches[0], "min_error", net)
    optimizer = torch.optim.SGD(composed.parameters(), 1e-3)
    for x in batches:
        composed.train()(x).square().mean().backward()
        optimizer.step()
    return composed.eval()


MODES = [
    ModeOptions("plain"),
    ModeOptions("plain", plain_bn="folded"),
    ModeOptions("merged"),
    ModeOptions("merged", merged_bn="reinsert"),
    ModeOptions("repq"),
    ModeOptions("repq_bn"),
    ModeOptions("repq_bnest"),
]
QUANTS = [
    QuantOptions(weight_bits=4, act_bits=4),
    QuantOptions(weight_bits=2, act_bits=2, first_last="same"),
    QuantOptions(weight_bits=3, act_bits=5, granularity="tensor"),
    QuantOptions(weight_bits=8, act_bits=8, first_last="fp"),
    QuantOptions(weight_bits=4, act_bits=32),
    QuantOptions(weight_bits=32, act_bits=32),
]


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: f"{mode.name}-{mode.plain_bn}-{mode.merged_bn}")
def test_deployed_equals_trained_exactly(mode: ModeOptions, tmp_path: Path, subtests: pytest.Subtests) -> None:
    for quant in QUANTS:
        with subtests.test(quant=str(quant)):
            net = trained(mode, quant)
            freeze(net, DESCRIPTION).save(tmp_path)
            deployed = DeployedNet.load(tmp_path)
            agreement = compare(net, deployed, [torch.randn(5, 3, 12, 11), torch.randn(1, 3, 12, 11)], AGREEMENT)
            assert agreement.max_abs == 0
            assert agreement.answers == 100
            assert agreement.max_lsb in ((None,) if quant.act_bits == 32 else (0,))
            for node in deployed.nodes:
                if "weight" in node and node["bits"] < 32:
                    codes = deployed.codes(node)
                    assert codes.dtype == torch.int16
                    assert node["low"] <= codes.min()
                    assert codes.max() <= node["high"]


def test_compare_sees_a_difference() -> None:
    """The check can fail: one code more in one layer is found."""
    net = trained(MODES[2], QUANTS[0])
    deployed = freeze(net, DESCRIPTION)
    deployed.blocks_1__weight[0, 0, 1, 1] += 1.0
    agreement = compare(net, deployed, [torch.randn(5, 3, 12, 11)], AGREEMENT)
    assert agreement.max_abs > 0
    assert agreement.max_lsb is not None
    assert agreement.max_lsb >= 1


def test_compare_is_not_fooled_by_a_nan_in_a_later_batch() -> None:
    net = trained(MODES[2], QUANTS[0])
    batches = [torch.randn(2, 3, 12, 11), torch.full((2, 3, 12, 11), torch.nan)]
    agreement = compare(net, freeze(net, DESCRIPTION), batches, AGREEMENT)
    assert agreement.max_abs != 0


def test_equal_nets_give_equal_bytes(tmp_path: Path) -> None:
    net = trained(MODES[-1], QUANTS[0])
    for name in ("a", "b"):
        freeze(net, DESCRIPTION).save(tmp_path / name)
    for file in ("model.safetensors", "model.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert size_on_disk(tmp_path / "a") == sum(path.stat().st_size for path in (tmp_path / "a").iterdir())


@settings(max_examples=50, deadline=None)
@given(bits=st.integers(2, 8), count=st.integers(1, 40), seed=st.integers(0, 99))
def test_packing_is_lossless_and_small(bits: int, count: int, seed: int) -> None:
    low, high = integer_range(bits, signed=True)
    codes = torch.randint(low, high + 1, (count,), generator=torch.Generator().manual_seed(seed))
    packed = pack(codes.float(), bits, low)
    assert packed.dtype == torch.uint8
    assert len(packed) == -(-count * packed_bits(bits) // 8)
    assert torch.equal(unpack(packed, bits, low, [count]).long(), codes)


@settings(max_examples=50, deadline=None)
@given(low=st.sampled_from([-1, 0]), count=st.integers(1, 40), seed=st.integers(0, 99))
def test_one_bit_is_packed_eight_to_a_byte(low: int, count: int, seed: int) -> None:
    """Codes of -1 and 1, or of 0 and 1."""
    bits = torch.randint(0, 2, (count,), generator=torch.Generator().manual_seed(seed))
    codes = bits if low == 0 else 2 * bits - 1
    packed = pack(codes.float(), 1, low)
    assert len(packed) == -(-count // 8)
    assert torch.equal(unpack(packed, 1, low, [count]).long(), codes)


@pytest.mark.parametrize(
    ("quant", "smaller"),
    [
        (QuantOptions("bwn", act_bits=32, weight_bits=1, granularity="tensor"), 30),
        (QuantOptions("sign", act_bits=32, weight_bits=1), 30),
        (QuantOptions("twn", act_bits=32, weight_bits=2), 15.8),
        (QuantOptions(weight_bits=4), 7.8),
        (QuantOptions("affine", "affine"), 3.9),
    ],
)
def test_convolutions_of_repvgg_a0_shrink_by_their_bits(quant: QuantOptions, smaller: float) -> None:
    """Codes and steps together, the first layer at 8 bit included, against float32."""
    net = repvgg(plain_block, 3, 10, [2, 4, 14, 1], [0.75, 0.75, 0.75, 2.5], [2] * 5)
    composed = compose(net, ModeOptions("merged", post_bn=False), quant)
    deployed = freeze(composed, DESCRIPTION)
    convs = [node for node in deployed.nodes if node["op"] == "conv"]
    keys = ("weight", "weight_step", "weight_zero_point")
    tensors = [deployed.stored[node[key]] for node in convs for key in keys if node.get(key)]
    floats = 4 * sum(torch.Size(node["shape"]).numel() for node in convs)
    assert floats / sum(tensor.numel() * tensor.element_size() for tensor in tensors) >= smaller


def test_four_bit_weights_take_an_eighth_of_float32(tmp_path: Path) -> None:
    net = trained(MODES[2], QuantOptions(weight_bits=4, act_bits=4, first_last="same"))
    deployed = freeze(net, DESCRIPTION)
    weights = [deployed.stored[node["weight"]] for node in deployed.nodes if "weight" in node]
    count = sum(torch.Size(node["shape"]).numel() for node in deployed.nodes if "weight" in node)
    assert sum(tensor.numel() * tensor.element_size() for tensor in weights) == pytest.approx(
        count / 2, abs=len(weights)
    )
    assert parameter_count(deployed) == count + sum(node["shape"][0] for node in deployed.nodes if "weight" in node)


def test_damaged_codes_are_found_by_layer(tmp_path: Path) -> None:
    net = trained(MODES[2], QuantOptions(weight_bits=3, act_bits=4, first_last="same"))
    freeze(net, DESCRIPTION).save(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    stored["blocks.1.codes"].fill_(0xFF)  # nibble 15 is no code of 3 bits
    save_file(stored, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match="not what was frozen together"):
        DeployedNet.load(tmp_path)
    graph = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({key: graph[key] for key in graph if key != "sha256"}))
    with pytest.raises(DataError, match="not what was frozen together"):
        DeployedNet.load(tmp_path)
    seal(tmp_path)
    with pytest.raises(CheckError, match=r"layer blocks_1 stores codes outside -4\.\.3"):
        DeployedNet.load(tmp_path)


@pytest.mark.parametrize("file", ["model.json", "model.safetensors"])
def test_files_of_different_networks_do_not_go_together(file: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        freeze(trained(MODES[2], QUANTS[0]), DESCRIPTION).save(tmp_path / name)
    (tmp_path / "a" / file).write_bytes((tmp_path / "b" / file).read_bytes())
    with pytest.raises(DataError, match="not what was frozen together"):
        DeployedNet.load(tmp_path / "a")
    assert (
        DeployedNet.load(tmp_path / "b").graph.keys() == freeze(trained(MODES[2], QUANTS[0]), DESCRIPTION).graph.keys()
    )


def test_missing_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"model\.json is no file"):
        DeployedNet.load(tmp_path)
    net = trained(MODES[2], QUANTS[0])
    freeze(net, DESCRIPTION).save(tmp_path)
    graph = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(graph | {"format": 99}))
    with pytest.raises(DataError, match="format 99"):
        DeployedNet.load(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps(graph))
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="not what was frozen together"):
        DeployedNet.load(tmp_path)
    seal(tmp_path)
    with pytest.raises(DataError, match="holds no network that can be run"):
        DeployedNet.load(tmp_path)


def test_a_network_that_computes_outside_modules_is_refused() -> None:
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flatten = nn.Flatten()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cumsum(self.flatten(x), 1)

    with pytest.raises(ValueError, match=r"torch\.cumsum at cumsum has no deployed form"):
        freeze(Doubled(), DESCRIPTION)


@pytest.mark.parametrize(
    ("layer", "sentence"),
    [
        (nn.LPPool2d(2, 2), "LPPool2d of layer 0 has no deployed form"),
        (nn.AdaptiveAvgPool2d(5), "layer 0 pools maps of 12x11 to 5x5"),
    ],
)
def test_a_layer_without_a_deployed_form_is_named(layer: nn.Module, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        freeze(nn.Sequential(layer), DESCRIPTION)
