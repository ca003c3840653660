"""Networks that are not of repq's blocks: their linear regions, what is merged of them, and how they train and ship."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from foreign_nets import NETS, Classifier, Mixer, randomised
from onnx_codes import layers_in_onnx
from torch import Tensor, nn

import repq_cli as repq
from repq_cli.answers import tensors
from repq_cli.deploy.check import compare_integers
from repq_cli.deploy.integer import IntegerNet
from repq_cli.graphs.adopt import adopt
from repq_cli.library.foreign import own
from repq_cli.reparam.block import Block

IMAGES = (2, 3, 32, 32)


def images(dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = IMAGES) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def furthest(found: object, expected: object) -> float:
    pairs = zip(tensors(found), tensors(expected), strict=True)
    return max((a - b).abs().max().item() / max(1.0, b.abs().max().item()) for a, b in pairs)


@torch.no_grad()
def test_regions_are_found_and_merged_exactly(subtests: pytest.Subtests) -> None:
    for name, (make, regions) in NETS.items():
        with subtests.test(name):
            net, x = randomised(make()).double().eval(), images(torch.float64)
            found = own(net, x).net
            assert len([block for block in found.modules() if isinstance(block, Block)]) == regions
            assert furthest(found(x), net(x)) < 1e-12
            assert furthest(repq.merge(net, x)(x), net(x)) < 1e-10
            odd = images(torch.float64, (1, 3, 48, 40))
            assert furthest(found(odd), net(odd)) < 1e-12, "another size of images and another number"
            theirs = {name for name, _ in net.named_parameters()}
            assert theirs <= set(found.foreign_names.values()), "no parameter is lost"


def test_training_is_the_networks_own() -> None:
    net, x = randomised(NETS["fastvit"][0]()).double(), images(torch.float64)
    found = own(net, x).net
    assert isinstance(found, nn.Module)
    net.train(), found.train()
    found.load_state_dict(own(net, x).net.state_dict())
    for each in (net, found):
        tensors(each(x))[0].square().sum().backward()
    gradients = dict(net.named_parameters())
    for name, parameter in found.named_parameters():
        if name in found.foreign_names:
            theirs = gradients[found.foreign_names[name]].grad
            assert theirs is not None and parameter.grad is not None
            assert torch.allclose(theirs, parameter.grad, rtol=1e-8, atol=1e-10), name


def trained_two_steps(net: nn.Module, x: Tensor, mode: str, **options: object) -> nn.Module:
    qat = repq.prepare(net, x, mode=mode, batches=[x], **options)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(repq.parameter_groups(qat), 1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        sum(output.square().mean() for output in tensors(qat(x))).backward()  # type: ignore[union-attr]
        nn.utils.clip_grad_norm_(qat.parameters(), 1.0)
        optimizer.step()
        repq.after_step(qat)
    return qat.eval()


def ships_exactly(qat: nn.Module, x: Tensor, folder: Path, answers: bool = True) -> repq.Shipped:
    """Frozen without a difference; integers and ONNX within one code of it layer by layer, ONNX with its answers.

    answers: False for a net that makes another answer of a single code (docs/networks.md).
    """
    shipped = repq.freeze(qat, x)
    assert repq.check(qat, shipped, [x]).max_abs == 0
    deployed = shipped.deployed
    found = compare_integers(deployed, IntegerNet(deployed), [x], lambda a, b: torch.full((len(x),), 100.0))
    assert found.max_lsb is not None and found.max_lsb <= 1
    report = repq.export_onnx(shipped, folder / "net.onnx", batches=[x] if answers else None)
    assert report.answers == (100 if answers else None)
    layers = layers_in_onnx(folder / "net.onnx", deployed, x)
    assert layers.lsb <= 1 and layers.share < 1e-3 and layers.outputs < 1e-5, layers
    return shipped


MODES = {
    "idioms": "plain",
    "repvgg": "repq_bnest",
    "mobileone": "merged",
    "repvit": "repq_bn",
    "fastvit": "repq_bnest",
    "detector": "repq_bn",
}


def test_every_kind_trains_and_ships(subtests: pytest.Subtests, tmp_path: Path) -> None:
    for name, make in ({name: make for name, (make, _) in NETS.items()} | {"mixer": Mixer}).items():
        with subtests.test(name):
            torch.manual_seed(0)
            net, x = randomised(make()), images()
            assert repq.explain(net, x).refusals == []
            ships_exactly(trained_two_steps(net, x, MODES.get(name, "repq")), x, tmp_path)


class Deciding(nn.Module):
    """Another path for dark images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if x.sum() > 0 else x


class Unknown(nn.Module):
    """Operations without a deployed form."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.erf(x) + torch.cumsum(x, 1)


class Together(nn.Module):
    """What puts the channels of all images together."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y.view(1, -1, *y.shape[2:]).mean((2, 3))


class Writing(nn.Module):
    """What writes into tensors in a way that no graph has."""

    def __init__(self, write: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.write = write

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        self.write(y)
        return y


def set_to_zero(x: Tensor) -> None:
    x[:, 0] = 0


def test_what_cannot_be_followed_or_shipped_is_named(tmp_path: Path) -> None:
    x = images()
    deciding = Classifier(Deciding())
    with pytest.raises(repq.ConfigError, match=r"blocks\.0 \(Deciding\).*keep_float=\['blocks\.0'\]"):
        repq.prepare(deciding, x)
    qat = trained_two_steps(deciding, x, "repq", keep_float=["blocks.*"])
    assert isinstance(qat.get_submodule("blocks.0").module.conv, nn.Conv2d)
    with pytest.raises(
        repq.ConfigError, match=r"blocks\.0 \(Deciding\) is kept in floating point .* cannot be shipped"
    ):
        repq.freeze(qat, x)
    (refusal,) = repq.explain(deciding, x, keep_float=["blocks.*"]).refusals
    assert "cannot be shipped" in refusal
    with pytest.raises(repq.ConfigError, match=r"fails for images of 3x2x2 \(.*give the size that it is for"):
        adopt(nn.Sequential(nn.Conv2d(3, 4, 1), nn.MaxPool2d(4)), x[:, :, :2, :2])
    with pytest.raises(repq.ConfigError, match="Together computes with the number of images"):
        repq.prepare(Together(), x)
    for write, problem in (
        (lambda y: y[:, :1].relu_(), r"blocks\.0 \(Writing\).*another view behind it"),
        (set_to_zero, r"blocks\.0 \(Writing\).*a part of a tensor"),
    ):
        with pytest.raises(repq.ConfigError, match=problem):
            repq.prepare(Classifier(Writing(write)), x)
    hooked = nn.Conv2d(8, 8, 1)
    hooked.register_forward_hook(lambda module, inputs, output: 2 * output)
    with pytest.raises(repq.ConfigError, match=r"blocks\.0 \(Conv2d\): it has hooks"):
        repq.prepare(Classifier(hooked), x)
    with pytest.raises(repq.ConfigError, match=r"erf.*cumsum"):  # all at once
        repq.prepare(Classifier(Unknown()), x)
    with pytest.raises(repq.ConfigError, match="keep_float names nothing"):
        repq.prepare(deciding, x, keep_float=["nothing"])
    repvgg = NETS["repvgg"][0]()
    with pytest.raises(repq.ConfigError, match=r"keep_float names a part of blocks\.0, which is one convolution"):
        repq.prepare(repvgg, x, keep_float=["blocks.0.dense"])
    with pytest.raises(repq.ConfigError, match=r"float16.*\.float\(\) and train inside torch\.autocast"):
        repq.prepare(NETS["repvgg"][0]().half(), x.half())
    kept = trained_two_steps(repvgg, x, "repq", keep_float=["blocks.0"])
    assert kept.get_submodule("blocks.0").quantizer.bits == 32 and kept.get_submodule("blocks.1").quantizer.bits == 8
    layers = {layer.name: layer.weight_bits for layer in repq.explain(repvgg, x, keep_float=["blocks.0"]).layers}
    assert (layers["blocks.0"], layers["blocks.1"]) == (32, 8)
    shipped = repq.freeze(kept, x)
    repq.check(kept, shipped, [x])
    assert repq.export_onnx(shipped, tmp_path / "partly.onnx", batches=[x]).answers == 100
    with torch.no_grad():
        next(kept.get_submodule("fc").parameters()).fill_(float("nan"))
    with pytest.raises(repq.CheckError, match="not numbers: training has diverged"):
        repq.check(kept, repq.freeze(kept, x), [x])


# Networks of timm's, how many regions they have, and how many of these have branches or factors of their own.
TIMM = {
    "repvgg_a0": (22, 22),
    "mobileone_s0": (43, 43),
    "mobileone_s1": (43, 39),  # of one branch: where it widens nothing is added to it
    "repghostnet_050": (95, 32),
    "resnet18": (20, 0),
    "mobilenetv2_100": (52, 0),
    "mobilenetv3_small_100": (52, 1),
    "efficientnet_b0": (81, 0),
    "repvit_m0_9": (105, 25),
    "fastvit_t8": (52, 30),
}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", TIMM)
def test_networks_of_timm(name: str, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="timm is an extra")
    torch.manual_seed(0)
    net, x = randomised(timm.create_model(name, num_classes=10)).double().eval(), images(torch.float64, (2, 3, 64, 64))
    with torch.no_grad():
        assert furthest(repq.merge(net, x)(x), net(x)) < 1e-10
    blocks = [block for block in own(net, x).net.modules() if isinstance(block, Block)]
    assert (len(blocks), sum(block.kind != "conv" for block in blocks)) == TIMM[name]
    net, x = net.float(), x.float()
    for mode in ("repq_bn", "repq_bnest", "merged" if TIMM[name][1] else "repq"):
        answers = name != "efficientnet_b0" or mode == "repq"  # two images' statistics magnify its roundings
        ships_exactly(trained_two_steps(net, x, mode), x, tmp_path, answers)
