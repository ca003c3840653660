"""Parameter, MAC and bit-operation counts of the papers' networks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision
from conftest import randomise
from torch import nn

from repq_cli.deploy.cost import cost, parameter_count
from repq_cli.deploy.freeze import freeze
from repq_cli.deploy.integer import IntegerNet
from repq_cli.library.networks import network
from repq_cli.models.mobilenet import mobilenet_v1, mobilenet_v2
from repq_cli.models.repvgg import RepVGG, repvgg
from repq_cli.models.resnet import resnet
from repq_cli.modes.calibrate import calibrate
from repq_cli.modes.compose import compose
from repq_cli.modes.options import ModeOptions
from repq_cli.pretrained.resnet import torchvision as torchvision_layout
from repq_cli.quant.options import QuantOptions
from repq_cli.reparam.acnet import acnet_block
from repq_cli.reparam.algebra import Geometry
from repq_cli.reparam.block import Block, MakeBlock
from repq_cli.reparam.branch import IdentityBranch
from repq_cli.reparam.orepa import orepa_block
from repq_cli.reparam.plain import only_kernels, plain_block
from repq_cli.reparam.qarepvgg import qarepvgg_block
from repq_cli.reparam.repvgg import repvgg_block

A0 = {"blocks": [2, 4, 14, 1], "widths": [0.75, 0.75, 0.75, 2.5], "strides": [2] * 5}
B0 = {"blocks": [4, 6, 16, 1], "widths": [1.0, 1.0, 1.0, 2.5], "strides": [2] * 5}


def parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.no_cover  # tracing would cost more than it tells
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


def resnet18(make: MakeBlock = plain_block, kernels: tuple[int, ...] = (3,), **arguments: object) -> nn.Module:
    return resnet(only_kernels(kernels, make), 3, 1000, [2, 2, 2, 2], **arguments)  # type: ignore[arg-type]


def deployed_cost(net: nn.Module, options: QuantOptions) -> tuple[int, float, float]:
    deployed = freeze(compose(net, ModeOptions("merged"), options), {"input_shape": [3, 224, 224]})
    macs, bops = cost(deployed)
    return parameter_count(deployed), macs / 1e9, bops / 1e9


@pytest.mark.no_cover  # tracing would cost more than it tells
@pytest.mark.parametrize(
    ("make", "kernels", "costs"),
    [(acnet_block, (3, 5), {8: 116.1, 4: 29.0}), (orepa_block, (3, 5, 7), {4: 29.0}), (repvgg_block, (3,), {})],
)
def test_counts_of_resnet18(make: MakeBlock, kernels: tuple[int, ...], costs: dict[int, float]) -> None:
    """Whatever it trains as, the papers' ResNet-18 ships as one net."""
    net = resnet18(make, kernels)
    for bits, expected in costs.items():
        options = QuantOptions(weight_bits=bits, act_bits=bits, first_last="same")  # type: ignore[arg-type]
        count, gmacs, gbops = deployed_cost(net, options)
        assert count == 11_684_712
        assert gmacs == pytest.approx(1.814073, abs=5e-7)
        assert gbops == pytest.approx(expected, abs=0.05)
    count, gmacs, gbops = deployed_cost(net, QuantOptions(weight_bits=4, act_bits=4))
    assert (count, gmacs, gbops) == (11_684_712, pytest.approx(1.814073, abs=5e-7), pytest.approx(34.7, abs=0.05))


def test_plain_resnet18_is_torchvisions() -> None:
    net, reference = resnet18(), torchvision.models.resnet18()
    assert parameters(net) == parameters(reference) == 11_689_512
    shapes = [sorted(tuple(p.shape) for p in of.parameters()) for of in (net, reference)]
    assert shapes[0] == shapes[1]


def test_the_papers_convolutions_become_blocks() -> None:
    def kinds(net: nn.Module) -> dict[str, int]:
        found = [module.kind for module in net.modules() if isinstance(module, Block)]
        return {kind: found.count(kind) for kind in found}

    assert kinds(resnet18(acnet_block, (3, 5))) == {"conv": 4, "acnet": 16}
    assert kinds(resnet18(orepa_block, (3, 5, 7))) == {"orepa deep": 1, "orepa": 16, "conv": 3}
    assert kinds(resnet18(repvgg_block, (1, 3, 7), stem="cifar")) == {"repvgg": 20}


def test_qarepvgg_b0_has_the_published_number_of_parameters() -> None:
    assert parameters(repvgg(qarepvgg_block, 3, 1000, **B0)) == 15_808_616  # type: ignore[arg-type]


def test_stems_of_resnet() -> None:
    x = torch.randn(1, 3, 32, 32)
    sizes = {}
    for stem in ("imagenet", "cifar"):
        net = resnet(plain_block, 3, 10, [1, 1, 1, 1], stem, width=0.125).eval()  # type: ignore[arg-type]
        sizes[stem] = net.stages(net.max_pool(net.stem(x))).shape[2:]
    assert sizes == {"imagenet": (1, 1), "cifar": (4, 4)}


@pytest.mark.parametrize(("residual", "same"), [("int", True), ("fp", False)])
def test_shortcuts_read_codes_or_the_tensor_before_them(residual: str, same: bool) -> None:
    """``quant.residual``: what reaches the sum through an identity shortcut."""
    net = resnet(plain_block, 3, 10, [1, 1, 1, 1], "cifar", width=0.125)
    composed = compose(net, ModeOptions("plain"), QuantOptions(weight_bits=4, act_bits=2, residual=residual))  # type: ignore[arg-type]
    block = composed.stages[0][0]
    x = torch.rand(2, 8, 6, 6)
    codes = block.tap1(x)
    assert torch.equal(block.shortcut(codes, x), codes if same else x)
    assert not torch.equal(codes, x)
    frozen = freeze(composed, {"input_shape": [3, 16, 16]})
    node = next(node for node in frozen.nodes if node["op"] == "add")
    read = {node["name"]: node["op"] for node in frozen.nodes}[node["inputs"][1]]
    assert read == ("quantize" if same else "conv"), "the stem's output is the tensor before the codes"


def test_groups_of_repvgg_are_those_of_g2() -> None:
    net = repvgg(repvgg_block, 3, 10, **B0, groups=2)  # type: ignore[arg-type]
    grouped = [index for index, block in enumerate(net.blocks) if block.geometry.groups == 2]
    assert grouped == list(range(2, 28, 2))


def forced_identity(geometry: Geometry, activation: nn.Module | None) -> Block:
    return Block(geometry, {"identity": IdentityBranch(geometry)}, activation)


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: repvgg(repvgg_block, 3, 10, **A0, groups=7), r"Layer blocks\.2: groups=7 must divide in_channels=48"),
        (lambda: repvgg(forced_identity, 3, 10, **A0), r"Layer blocks\.0: An identity branch needs"),
        (lambda: resnet18(acnet_block, (1,)), r"Layer stages\.1\.0\.shortcut: rep=acnet adds a middle row"),
        (lambda: resnet(plain_block, 3, 10, [1, 1]), r"model\.blocks takes 4 numbers, not 2"),
    ],
)
def test_a_block_that_cannot_be_is_refused_with_its_layer(build: Callable[[], nn.Module], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build()


V1_STRIDES, V2_STRIDES = [2, 1, 2, 2, 2, 2], [2, 1, 2, 2, 2, 1, 2, 1]


@pytest.mark.parametrize("width", [0.35, 0.75, 1.0, 1.4])
def test_mobilenet_v2_is_torchvisions(width: float) -> None:
    net = mobilenet_v2(plain_block, 3, 7, V2_STRIDES, width).eval()
    reference = torchvision.models.mobilenet_v2(num_classes=7, width_mult=width)
    layout = torchvision_layout(net)
    assert layout is not None
    state = randomise(reference).eval().state_dict()
    assert {source.key for source in layout.sources.values()} == set(state)
    net.load_state_dict({key: source.read(state) for key, source in layout.sources.items()})
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(net(x), reference(x), rtol=1e-4, atol=1e-4)
    assert parameters(net) == parameters(reference)


@pytest.mark.parametrize(
    ("width", "millions", "mmacs"), [(1.0, 4.2, 569), (0.75, 2.6, 325), (0.5, 1.3, 149), (0.25, 0.5, 41)]
)
def test_mobilenet_v1_costs_what_its_paper_says(width: float, millions: float, mmacs: int) -> None:
    """Arxiv 1704.04861, table 6."""
    net = mobilenet_v1(plain_block, 3, 1000, V1_STRIDES, width)
    assert parameters(net) / 1e6 == pytest.approx(millions, abs=0.051)
    deployed = freeze(compose(net, ModeOptions("plain"), QuantOptions()), {"input_shape": [3, 224, 224]})
    assert cost(deployed).macs / 1e6 == pytest.approx(mmacs, abs=1)


# Parameters while training and in inference, of the published networks as timm 1.0.31 has them.
MOBILEONE = {
    "mobileone_s0": (5_293_272, 2_078_504),
    "mobileone_s1": (4_825_192, 4_764_840),
    "mobileone_s2": (7_884_648, 7_808_168),
    "mobileone_s3": (10_170_600, 10_078_312),
    "mobileone_s4": (14_951_248, 14_838_352),
}
# Weights of the merged convolutions: arXiv 2103.09404, table 1.
SESR = {"sesr_m5": 13_520, "sesr_m11": 27_344, "sesr_xl": 105_376}


def test_counts_of_mobileone_and_sesr() -> None:
    for name, (training, merged) in MOBILEONE.items():
        with torch.device("meta"):
            net = network(name, num_classes=1000)
        assert parameters(net) == training, name
        deployed = sum(parameters(module) for module in net.modules() if isinstance(module, nn.Linear))
        for block in (module for module in net.modules() if isinstance(module, Block)):
            deployed += block.geometry.weight_shape.numel() + block.geometry.out_channels
        assert deployed == merged, name
    with torch.device("meta"):
        assert parameters(network("repvgg_d2se", num_classes=1000, in_channels=3)) == 133_334_836
    for name, weights in SESR.items():
        blocks = [module for module in network(name).modules() if isinstance(module, Block)]
        assert sum(block.geometry.weight_shape.numel() for block in blocks) == weights, name


@pytest.mark.parametrize("make", [mobilenet_v1, mobilenet_v2, repvgg, resnet])
def test_a_wrong_number_of_stages_is_refused(make: Callable[..., nn.Module]) -> None:
    arguments = {
        mobilenet_v1: {"strides": [1, 2]},
        mobilenet_v2: {"strides": [1, 2]},
        repvgg: {"strides": [1, 2], "blocks": [1], "widths": [1.0]},
        resnet: {"blocks": [1]},
    }[make]
    with pytest.raises(ValueError, match="stages"):
        make(plain_block, 3, 10, **arguments)


def test_depthwise_convolutions_can_be_re_parameterised() -> None:
    blocks = [
        module
        for module in mobilenet_v1(only_kernels([3], repvgg_block), 3, 10, V1_STRIDES, 0.25).modules()
        if isinstance(module, Block)
    ]
    assert [block.kind for block in blocks[:3]] == ["repvgg", "repvgg", "conv"]
    assert blocks[1].geometry.depthwise


def test_squeeze_and_excitation_ships() -> None:
    """Products of a map and a factor for each channel: frozen exactly, and integers of the same answers."""
    net = randomise(network("repvgg_d2se", 5, in_channels=3, width=0.05, blocks=[1, 1, 1, 1])).eval()
    x = torch.randn(2, 3, 64, 64)
    for mode in ("merged", "repq_bnest"):
        qat = compose(net, ModeOptions(mode), QuantOptions(weight_bits=4, act_bits=4))
        calibrate(qat, x, "min_error", net)
        deployed = freeze(qat.eval(), {"input_shape": [3, 64, 64]})
        torch.testing.assert_close(deployed(x), qat(x), rtol=0, atol=0)
        scale = deployed(x).abs().max()
        assert (IntegerNet(deployed)(x) - deployed(x)).abs().max() <= 0.05 * scale
