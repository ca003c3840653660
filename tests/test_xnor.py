"""Sums of signs on packed words against convolutions of integers, and whole networks that use them."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_integer import NETS, frozen
from torch import Tensor

from repq_cli.deploy.integer import IntegerNet
from repq_cli.deploy.operations import OPERATIONS
from repq_cli.deploy.xnor import BinaryConv, pack, unpacked
from repq_cli.deploy.xnor_net import XnorNet
from repq_cli.errors import ConfigError

pytestmark = pytest.mark.xdist_group("frozen")  # the worker that has made the networks of test_integer.py


def signs(*shape: int) -> Tensor:
    return torch.randint(0, 2, shape) * 2 - 1


def test_a_word_holds_64_channels_lowest_first() -> None:
    x = -torch.ones(1, 70, 1, 2)
    x[0, 0, 0, 0] = x[0, 63, 0, 1] = x[0, 65, 0, 1] = 1
    words = pack(x, 0.0)
    assert words.tolist() == [[[[1, 0], [2**63, 2]]]]
    assert torch.equal(unpacked(words, 70, (-1, 1)), x)
    assert pack(torch.tensor([-0.0, 0.0, -1e-30]).view(1, 3, 1, 1), 0.0).item() == 3


@pytest.mark.parametrize("length", [1, 63, 64, 65, 256, 700])
def test_products_are_those_of_signs(length: int) -> None:
    """Lengths of one word, and of no multiple of a word."""
    rows, columns = signs(5, length), signs(2, length, 19)
    layer = BinaryConv(rows.view(5, length, 1, 1), (-1, 1), 1, 0, 1)
    assert torch.equal(layer.sums(pack(columns.float().unsqueeze(2), 0.0)).squeeze(2).long(), rows @ columns)


@pytest.mark.no_cover  # tracing would cost more than it tells
@settings(max_examples=60, deadline=None)  # the first call compiles
@given(
    st.integers(1, 130),
    st.integers(1, 9),
    st.tuples(st.integers(5, 11), st.integers(5, 11)),
    st.sampled_from([(1, 1, 0), (1, 2, 0), (3, 1, 1), (3, 2, 1), (3, 1, 0), (5, 2, 2), (4, 3, 1)]),
    st.sampled_from([((-1, 1), -1), ((-1, 1), 0), ((-1, 1), 1), ((0, 1), 0)]),
    st.sampled_from([1, 1, 2, 3]),
)
def test_sums_are_those_of_conv2d(
    channels: int,
    outputs: int,
    sides: tuple[int, int],
    geometry: tuple[int, int, int],
    codes: tuple[tuple[int, int], int],
    groups: int,
) -> None:
    (size, stride, padding), ((low, high), pad) = geometry, codes
    weight = signs(outputs * groups, channels, size, size)
    x = torch.where(torch.rand(2, channels * groups, *sides) < 0.5, low, high)
    expected = F.conv2d(F.pad(x, [padding] * 4, value=pad), weight, None, stride, groups=groups)
    found = BinaryConv(weight, (low, high), stride, padding, pad, groups)(x.float(), (low + high) / 2)
    assert found.dtype == torch.int32 and torch.equal(found.long(), expected)


QUANTS = {
    "bnn": ["quant=bnn"],
    "bnn padded with zeros": ["quant=bnn", "quant.pad_value=0"],
    "w1a1": ["quant=w1a1"],
    "xnor": ["quant=xnor", "quant.first_last=8"],
    "xnor with K": ["quant=xnor", "quant.input_scale=true", "quant.first_last=8"],
}


@pytest.mark.no_cover  # tracing would cost more than it tells
@pytest.mark.parametrize(("net", "quant"), list(itertools.product(["resnet18", "resnet18 acnet"], QUANTS)))
def test_binary_layers_give_the_sums_of_the_integer_executor(net: str, quant: str) -> None:
    deployed, x = frozen(*NETS[net], *QUANTS[quant])
    fast = XnorNet(deployed)
    assert len(fast.binary) >= 16
    values = deployed.run(x)
    for node in deployed.nodes:
        if node["name"] in fast.binary:
            codes = values[node["inputs"][0]]
            padded = F.pad(codes.to(torch.int32), [node["padding"]] * 4, value=deployed.pad_code(node))
            expected = F.conv2d(padded, deployed.codes(node).to(torch.int32), None, node["stride"])
            source = deployed.quantizers[node["inputs"][0]]
            middle = (source["low"] + source["high"]) / 2
            assert torch.equal(fast.binary[node["name"]](codes, middle), expected)


@pytest.mark.no_cover  # tracing would cost more than it tells
@pytest.mark.parametrize("quant", QUANTS)
def test_networks_answer_as_without_the_kernel(quant: str) -> None:
    """Bit for bit: thresholds in place of norms, of shortcuts and in front of the max pool; channels in groups."""
    nets = {"resnet18": 8, "resnet18 imagenet stem": 9, "repvgg": 1} if quant != "xnor with K" else {"resnet18": 0}
    for net, least in nets.items():
        groups = ["model.groups=2"] if net == "repvgg" else []
        deployed, x = frozen(*NETS[net], *groups, *QUANTS[quant])
        fast = XnorNet(deployed)
        assert len(fast.thresholds) >= least
        assert torch.equal(fast(x), deployed(x))


def test_integers_of_bnn_are_the_kernels() -> None:
    """The integer executor's sums before its bias, from the kernel, on its own codes."""
    deployed, x = frozen(*NETS["resnet18"], "quant=bnn")
    integers, fast = IntegerNet(deployed), XnorNet(deployed)
    values = integers.run(x)
    node = next(node for node in deployed.nodes if node["name"] in fast.binary)
    constants, codes = integers.constants[node["name"]], values[node["inputs"][0]]
    turned = torch.where(constants["weight"].flatten(1)[:, 0] == deployed.codes(node).flatten(1)[:, 0], 1, -1)
    sums = fast.binary[node["name"]](codes.float(), 0.0) * turned.view(-1, 1, 1)
    own = OPERATIONS["conv"].integers(
        integers, node | {"activation": "none"}, constants | {"bias": None, "left": constants["left"] * 0}, codes
    )
    assert torch.equal(own, sums.to(torch.int32))


def test_networks_without_binary_layers_are_refused() -> None:
    deployed, _ = frozen(*NETS["repvgg"], "quant=w2a2")
    with pytest.raises(ConfigError, match="No convolution of this network has one bit"):
        XnorNet(deployed)
