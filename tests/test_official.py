"""Published state dicts load into our networks and compute what their own code computes.

Each reference below is written from the published key list: a dict of tensors with the keys and shapes of the project's
own state dict, and an eval-mode forward that reads nothing but those keys.
"""

from __future__ import annotations

import argparse
import functools
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from conftest import randomise
from torch import Tensor, nn

from repq_cli.errors import DataError
from repq_cli.models.official import FORMATS, recognise
from repq_cli.models.repvgg import repvgg
from repq_cli.models.resnet import resnet
from repq_cli.reparam.acnet import acnet_block
from repq_cli.reparam.orepa import orepa_block
from repq_cli.reparam.plain import only_kernels, plain_block
from repq_cli.reparam.qarepvgg import qarepvgg_block
from repq_cli.reparam.repvgg import repvgg_block
from repq_cli.train.fp_weights import load_fp

State = dict[str, Tensor]
Conv = Callable[[State, str, Tensor, int], Tensor]  # state, prefix, input, stride
BLOCKS = [1, 2, 1, 1]
SIGNATURE = {"model": "any"}


# Writing published state dicts.


def norm_keys(prefix: str, channels: int) -> State:
    return {
        f"{prefix}.weight": torch.randn(channels) * 0.3 + 1,
        f"{prefix}.bias": torch.randn(channels) * 0.3,
        f"{prefix}.running_mean": torch.randn(channels) * 0.3,
        f"{prefix}.running_var": torch.rand(channels) + 0.5,
        f"{prefix}.num_batches_tracked": torch.tensor(7),
    }


def kernel(*shape: int) -> Tensor:
    return torch.randn(*shape) / math.sqrt(shape[1] * shape[2] * shape[3])


def repvgg_stages(widths: list[int]) -> list[tuple[str, int, int, int]]:
    """Name, inputs, outputs and stride of every block of a RepVGG with ``BLOCKS`` blocks a stage."""
    stages, before = [("stage0", 3, widths[0], 2)], widths[0]
    for stage, (count, width) in enumerate(zip(BLOCKS, widths[1:], strict=True), 1):
        for place in range(count):
            stages.append((f"stage{stage}.{place}", before, width, 1 if place else 2))
            before = width
    return stages


def repvgg_state(widths: list[int], variant: str) -> State:
    """``DingXiaoH/RepVGG repvgg.py`` (``variant=repvgg``) and ``cxxgtxy/QARepVGG repvgg.py`` (``v1``, ``v2``)."""
    state: State = {}
    for stage, inputs, outputs, stride in repvgg_stages(widths):
        state |= {f"{stage}.rbr_dense.conv.weight": kernel(outputs, inputs, 3, 3)}
        state |= norm_keys(f"{stage}.rbr_dense.bn", outputs)
        if variant == "v2":
            state |= {f"{stage}.rbr_1x1.weight": kernel(outputs, inputs, 1, 1)}
        else:
            state |= {f"{stage}.rbr_1x1.conv.weight": kernel(outputs, inputs, 1, 1)}
            state |= norm_keys(f"{stage}.rbr_1x1.bn", outputs)
            if stride == 1 and inputs == outputs:
                state |= norm_keys(f"{stage}.rbr_identity", outputs)
        if variant != "repvgg":
            state |= norm_keys(f"{stage}.bn", outputs)
    return state | {"linear.weight": torch.randn(5, widths[-1]), "linear.bias": torch.randn(5)}


def resnet_layers(widths: list[int]) -> list[tuple[str, int, int, int]]:
    """Name, inputs, outputs and stride of every basic block."""
    layers, before = [], widths[0]
    for stage, (count, width) in enumerate(zip(BLOCKS, widths, strict=True)):
        for place in range(count):
            layers.append((f"stage{stage + 1}.{place}", before, width, 2 if stage and not place else 1))
            before = width
    return layers


def resnet_state(widths: list[int], stem: State, block_keys: Callable[[str, int, int, str], State]) -> State:
    """The ResNets of ACNet and OREPA: they differ in how they name their blocks."""
    state = dict(stem)
    for name, inputs, outputs, stride in resnet_layers(widths):
        state |= block_keys(f"{name}.conv1", inputs, outputs, "conv1")
        state |= block_keys(f"{name}.conv2", outputs, outputs, "conv2")
        if stride != 1 or inputs != outputs:
            state |= {f"{name}.shortcut.conv.weight": kernel(outputs, inputs, 1, 1)}
            state |= norm_keys(f"{name}.shortcut.bn", outputs)
    return state | {"linear.weight": torch.randn(5, widths[-1]), "linear.bias": torch.randn(5)}


def acnet_keys(prefix: str, inputs: int, outputs: int, place: str) -> State:
    prefix = f"{prefix}.acb" if place == "conv1" else prefix
    state = {
        f"{prefix}.square_conv.weight": kernel(outputs, inputs, 3, 3),
        f"{prefix}.ver_conv.weight": kernel(outputs, inputs, 3, 1),
        f"{prefix}.hor_conv.weight": kernel(outputs, inputs, 1, 3),
    }
    return state | {
        k: v for name in ("square", "ver", "hor") for k, v in norm_keys(f"{prefix}.{name}_bn", outputs).items()
    }


def orepa_kernel_keys(prefix: str, inputs: int, outputs: int) -> State:
    frequency = torch.zeros(outputs, 3, 3)
    for o in range(outputs):
        for a in range(3):
            for b in range(3):
                first = o < outputs / 2
                f = o + 1 if first else o + 1 - outputs / 2
                frequency[o, a, b] = math.cos(math.pi * ((a if first else b) + 0.5) * f / 3)
    identity = torch.eye(inputs).view(inputs, inputs, 1, 1)
    return {
        f"{prefix}.weight_orepa_origin": kernel(outputs, inputs, 3, 3),
        f"{prefix}.weight_orepa_avg_conv": kernel(outputs, inputs, 1, 1),
        f"{prefix}.weight_orepa_pfir_conv": kernel(outputs, inputs, 1, 1),
        f"{prefix}.weight_orepa_avg_avg": torch.ones(3, 3) / 9,
        f"{prefix}.weight_orepa_1x1": kernel(outputs, inputs, 1, 1),
        f"{prefix}.weight_orepa_1x1_kxk_idconv1": kernel(inputs, inputs, 1, 1) * 0.3,
        f"{prefix}.id_tensor": identity,
        f"{prefix}.weight_orepa_1x1_kxk_conv2": kernel(outputs, inputs, 3, 3),
        f"{prefix}.weight_orepa_gconv_dw": kernel(inputs * 8, 1, 3, 3),
        f"{prefix}.weight_orepa_gconv_pw": kernel(outputs, inputs * 8, 1, 1),
        f"{prefix}.vector": torch.randn(6, outputs) * 0.5,
        f"{prefix}.weight_orepa_prior": frequency,
    }


def orepa_keys(prefix: str, inputs: int, outputs: int, place: str) -> State:
    return orepa_kernel_keys(prefix, inputs, outputs) | norm_keys(f"{prefix}.bn", outputs)


# Running them.


def norm(state: State, prefix: str, x: Tensor) -> Tensor:
    mean, var = state[f"{prefix}.running_mean"], state[f"{prefix}.running_var"]
    return F.batch_norm(x, mean, var, state[f"{prefix}.weight"], state[f"{prefix}.bias"])


def run_repvgg(state: State, widths: list[int], x: Tensor) -> Tensor:
    for stage, inputs, outputs, stride in repvgg_stages(widths):
        dense = norm(
            state, f"{stage}.rbr_dense.bn", F.conv2d(x, state[f"{stage}.rbr_dense.conv.weight"], None, stride, 1)
        )
        if f"{stage}.rbr_1x1.weight" in state:
            point = F.conv2d(x, state[f"{stage}.rbr_1x1.weight"], None, stride)
        else:
            point = norm(state, f"{stage}.rbr_1x1.bn", F.conv2d(x, state[f"{stage}.rbr_1x1.conv.weight"], None, stride))
        y = dense + point
        if f"{stage}.rbr_identity.weight" in state:
            y = y + norm(state, f"{stage}.rbr_identity", x)
        elif f"{stage}.bn.weight" in state and stride == 1 and inputs == outputs:
            y = y + x
        x = F.relu(norm(state, f"{stage}.bn", y) if f"{stage}.bn.weight" in state else y)
    return F.linear(x.mean((2, 3)), state["linear.weight"], state["linear.bias"])


def run_resnet(state: State, widths: list[int], x: Tensor, stem: Callable[[Tensor], Tensor], conv: Conv) -> Tensor:
    x = F.max_pool2d(F.relu(stem(x)), 3, 2, 1)
    for name, _, _, stride in resnet_layers(widths):
        y = conv(state, f"{name}.conv2", F.relu(conv(state, f"{name}.conv1", x, stride)), 1)
        if f"{name}.shortcut.bn.weight" in state:
            x = norm(state, f"{name}.shortcut.bn", F.conv2d(x, state[f"{name}.shortcut.conv.weight"], None, stride))
        x = F.relu(y + x)
    return F.linear(x.mean((2, 3)), state["linear.weight"], state["linear.bias"])


def run_acnet(state: State, prefix: str, x: Tensor, stride: int) -> Tensor:
    prefix = f"{prefix}.acb" if f"{prefix}.acb.square_conv.weight" in state else prefix
    paddings = {"square": (1, 1), "ver": (1, 0), "hor": (0, 1)}
    return sum(
        norm(state, f"{prefix}.{name}_bn", F.conv2d(x, state[f"{prefix}.{name}_conv.weight"], None, stride, padding))
        for name, padding in paddings.items()
    )


def orepa_weight(state: State, prefix: str) -> Tensor:
    """The merged kernel as the published code generates it."""
    of = {key.removeprefix(f"{prefix}."): value for key, value in state.items() if key.startswith(f"{prefix}.")}
    flat = {key: value.flatten(1) for key, value in of.items() if value.dim() == 4}
    inner = flat["weight_orepa_1x1_kxk_idconv1"] + flat["id_tensor"]
    depthwise = of["weight_orepa_gconv_dw"].view(inner.shape[0], 8, 3, 3)
    pointwise = of["weight_orepa_gconv_pw"].view(-1, inner.shape[0], 8)
    rows = [
        of["weight_orepa_origin"],
        torch.einsum("oi,hw->oihw", flat["weight_orepa_avg_conv"], of["weight_orepa_avg_avg"]),
        torch.einsum("oi,ohw->oihw", flat["weight_orepa_pfir_conv"], of["weight_orepa_prior"]),
        torch.einsum("ti,othw->oihw", inner, of["weight_orepa_1x1_kxk_conv2"]),
        F.pad(of["weight_orepa_1x1"], (1, 1, 1, 1)),
        torch.einsum("gthw,ogt->oghw", depthwise, pointwise),
    ]
    return sum(torch.einsum("oihw,o->oihw", row, of["vector"][r]) for r, row in enumerate(rows))


def run_orepa(state: State, prefix: str, x: Tensor, stride: int) -> Tensor:
    return norm(state, f"{prefix}.bn", F.conv2d(x, orepa_weight(state, prefix), None, stride, 1))


def orepa_stem(state: State, x: Tensor) -> Tensor:
    """Three kernels composed without the flip, as published: ``conv2d`` of one kernel by the next."""
    weight = orepa_weight(state, "stage0.conv1.weight0").transpose(0, 1)
    for index in (1, 2):
        weight = F.conv2d(weight, orepa_weight(state, f"stage0.conv1.weight{index}"), padding=2)
    return norm(state, "stage0.conv1.bn", F.conv2d(x, weight.transpose(0, 1), None, 2, 3))


# The cases: a state dict, what it computes, and our net.

WIDTHS = [8, 8, 12, 16, 24]


def repvgg_net(make: Callable[..., nn.Module]) -> nn.Module:
    widths = [width / base for width, base in zip(WIDTHS[1:], (64, 128, 256, 512), strict=True)]
    return repvgg(make, 3, 5, BLOCKS, widths, [2] * 5)


def resnet_net(make: Callable[..., nn.Module], kernels: list[int]) -> nn.Module:
    return resnet(only_kernels(kernels, make), 3, 5, BLOCKS, width=0.125)


RESNET_WIDTHS = [8, 16, 32, 64]


def case(name: str) -> tuple[State, Callable[[Tensor], Tensor], nn.Module]:
    if name == "repvgg_official":
        state = repvgg_state(WIDTHS, "repvgg")
        return state, lambda x: run_repvgg(state, WIDTHS, x), repvgg_net(repvgg_block)
    if name == "qarepvgg_official":
        state = repvgg_state(WIDTHS, "v2")
        return state, lambda x: run_repvgg(state, WIDTHS, x), repvgg_net(qarepvgg_block)
    if name == "acnet_official":
        stem = {"conv1.conv.weight": kernel(8, 3, 7, 7)} | norm_keys("conv1.bn", 8)
        state = resnet_state(RESNET_WIDTHS, stem, acnet_keys)

        def ac_stem(x: Tensor) -> Tensor:
            return norm(state, "conv1.bn", F.conv2d(x, state["conv1.conv.weight"], None, 2, 3))

        run = lambda x: run_resnet(state, RESNET_WIDTHS, x, ac_stem, run_acnet)  # noqa: E731
        return state, run, resnet_net(acnet_block, [3, 5])
    if name == "orepa_official":
        stem = norm_keys("stage0.conv1.bn", 8)
        for index, inputs in enumerate((3, 8, 8)):
            stem |= orepa_kernel_keys(f"stage0.conv1.weight{index}", inputs, 8)
        state = resnet_state(RESNET_WIDTHS, stem, orepa_keys)
        run = lambda x: run_resnet(state, RESNET_WIDTHS, x, lambda x: orepa_stem(state, x), run_orepa)  # noqa: E731
        return state, run, resnet_net(orepa_block, [3, 5, 7])
    assert name == "torchvision"
    reference = randomise(torchvision.models.resnet18(num_classes=5)).eval()
    return reference.state_dict(), reference, resnet(plain_block, 3, 5, [2, 2, 2, 2])


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("explicit", [True, False])
def test_published_weights_compute_what_they_did(name: str, explicit: bool, tmp_path: Path) -> None:
    state, run, net = case(name)
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}} if explicit else state, path)
    load_fp(net, path, name if explicit else "auto", SIGNATURE)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(x), run(x), atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("name", FORMATS)
def test_every_layout_is_recognised_by_its_keys(name: str) -> None:
    state, _, _ = case(name)
    assert recognise(state) == name


def test_a_layout_that_nobody_published_is_not_recognised(tmp_path: Path) -> None:
    assert recognise(["features.0.weight", "features.0.bias"]) is None
    torch.save({"features.0.weight": torch.zeros(2)}, tmp_path / "w.pth")
    with pytest.raises(DataError, match=r"w\.pth are of none of the known layouts \(qarep.*\): features\.0\.weight"):
        load_fp(case("torchvision")[2], tmp_path / "w.pth", "auto", SIGNATURE)
    with pytest.raises(DataError, match=r"missing: .* its keys are of none of the known layouts "):
        load_fp(case("torchvision")[2], tmp_path / "w.pth", "torchvision", SIGNATURE)


def test_a_net_that_was_merged_already_is_not_loaded(tmp_path: Path) -> None:
    torch.save({"stage0.rbr_reparam.weight": torch.zeros(8, 3, 3, 3)}, tmp_path / "w.pth")
    with pytest.raises(DataError, match=r"of none of the known layouts .*: stage0\.rbr_reparam\.weight"):
        load_fp(case("repvgg_official")[2], tmp_path / "w.pth", "auto", SIGNATURE)


def test_qarepvggs_first_variant_is_not_taken_for_repvgg(tmp_path: Path) -> None:
    state = repvgg_state(WIDTHS, "v1")
    torch.save(state, tmp_path / "w.pth")
    net = repvgg_net(functools.partial(qarepvgg_block, variant="v1"))
    load_fp(net, tmp_path / "w.pth", "auto", SIGNATURE)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(x), run_repvgg(state, WIDTHS, x), atol=2e-4, rtol=2e-4)


def test_a_checkpoint_may_hold_the_arguments_of_its_script(tmp_path: Path) -> None:
    state, _, net = case("qarepvgg_official")
    content = {"model": state, "epoch": 3, "args": argparse.Namespace(lr=0.1)}
    torch.save(content, tmp_path / "w.pth")
    load_fp(net, tmp_path / "w.pth", "auto", SIGNATURE)


def test_an_odd_stem_of_orepa_has_no_published_form(tmp_path: Path) -> None:
    torch.save(case("orepa_official")[0], tmp_path / "w.pth")
    odd = resnet(only_kernels([3, 7], orepa_block), 3, 5, BLOCKS, width=9 / 64)
    with pytest.raises(DataError, match="even number of channels"):
        load_fp(odd, tmp_path / "w.pth", "auto", SIGNATURE)


@pytest.mark.parametrize("name", FORMATS)
def test_a_layout_is_for_its_own_nets_only(name: str, tmp_path: Path) -> None:
    state, _, _ = case(name)
    torch.save(state, tmp_path / "w.pth")
    for other in FORMATS:
        if other == name:
            continue
        _, _, net = case(other)
        before = {key: value.clone() for key, value in net.state_dict().items()}
        with pytest.raises(
            DataError, match=rf"as fp\.format={name} is for .* another: choose that net or another file"
        ):
            load_fp(net, tmp_path / "w.pth", "auto", SIGNATURE)
        with pytest.raises(DataError, match=rf"missing: .* unexpected: .* look like fp\.format={name} \(model="):
            load_fp(net, tmp_path / "w.pth", other, SIGNATURE)
        assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def damaged(change: Callable[[State], object], name: str, tmp_path: Path) -> str:
    state, _, net = case(name)
    state = dict(state)
    change(state)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(DataError) as caught:
        load_fp(net, tmp_path / "w.pth", name, SIGNATURE)
    return str(caught.value)


def test_missing_unexpected_and_misshapen_keys_are_listed(tmp_path: Path) -> None:
    text = damaged(lambda state: state.pop("layer1.0.conv1.weight"), "torchvision", tmp_path)
    assert "1 missing: layer1.0.conv1.weight" in text
    text = damaged(lambda state: state.update(extra=torch.zeros(1)), "torchvision", tmp_path)
    assert "1 unexpected: extra" in text
    text = damaged(lambda state: state.update({"fc.weight": torch.zeros(7, 512)}), "torchvision", tmp_path)
    assert "1 of another shape: fc.weight (7x512, not 5x512)" in text
    for rows in (2, 7):
        change = {"stage1.0.conv1.vector": torch.zeros(rows, 8)}
        text = damaged(lambda state, change=change: state.update(change), "orepa_official", tmp_path)
        assert f"1 of another shape: stage1.0.conv1.vector ({rows}x8, not 6x8)" in text
    text = damaged(lambda state: [state.pop(key) for key in list(state)[:30]], "torchvision", tmp_path)
    assert "and " in text and " more" in text


def test_counters_of_batches_may_be_missing(tmp_path: Path) -> None:
    state, _, net = case("torchvision")
    kept = {key: value for key, value in state.items() if "num_batches_tracked" not in key}
    torch.save(kept, tmp_path / "w.pth")
    load_fp(net, tmp_path / "w.pth", "torchvision", SIGNATURE)


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3, 7: torch.zeros(2)}, tmp_path / "w.pth")
    with pytest.raises(DataError, match=r"of none of the known layouts .*: 7"):
        load_fp(nn.Linear(2, 2), tmp_path / "w.pth", "auto", SIGNATURE)
    torch.save({"epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(DataError, match=r"holds no state dict: fp\.checkpoint takes tensors"):
        load_fp(nn.Linear(2, 2), tmp_path / "w.pth", "auto", SIGNATURE)
    torch.save([torch.zeros(2)], tmp_path / "w.pth")
    with pytest.raises(DataError, match="is no dict of tensors"):
        load_fp(nn.Linear(2, 2), tmp_path / "w.pth", "auto", SIGNATURE)


@pytest.mark.parametrize(
    ("key", "change", "sentence"),
    [
        ("fc.weight", lambda tensor: tensor * torch.nan, r"values in fc\.weight that are not finite"),
        ("bn1.running_var", lambda tensor: -tensor, r"a negative variance in bn1\.running_var"),
        ("fc.weight", lambda tensor: tensor.int(), r"fc\.weight as torch\.int32: floating-point"),
        ("fc.weight", lambda tensor: tensor.to(torch.complex64), r"fc\.weight as torch\.complex64"),
        ("fc.weight", lambda tensor: tensor.to_sparse(), r"fc\.weight as a torch\.sparse_coo tensor: dense"),
    ],
)
def test_weights_that_no_net_can_run_with_are_named(
    key: str, change: Callable[[Tensor], Tensor], sentence: str, tmp_path: Path
) -> None:
    text = damaged(lambda state: state.update({key: change(state[key])}), "torchvision", tmp_path)
    assert re.search(sentence, text)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_precisions_are_loaded(dtype: torch.dtype, tmp_path: Path) -> None:
    state, _, net = case("torchvision")
    torch.save({k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}, tmp_path / "w.pth")
    load_fp(net, tmp_path / "w.pth", "auto", SIGNATURE)
    assert net.classifier.weight.dtype == torch.float32
